package pprof

import (
	"bytes"
	"testing"

	"github.com/google/pprof/profile"
)

// TestEncoder reads a profile with pprof's own library.
func TestEncoder(t *testing.T) {
	var b bytes.Buffer
	e := NewEncoder(&b, "samples", "count", "time", "nanoseconds")
	e.Period(1000)
	e.Sample(0xffffffff81000010, "startup_64", 3, 3000)
	e.Sample(0xffffffff81000020, "startup_64", 1, 1000)
	e.Sample(0x401000, "[user mode]", 1<<40, -1)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := profile.Parse(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.CheckValid(); err != nil {
		t.Fatal(err)
	}
	if p.Period != 1000 || *p.PeriodType != (profile.ValueType{Type: "time", Unit: "nanoseconds"}) ||
		len(p.SampleType) != 2 || p.SampleType[0].Type != "samples" || p.SampleType[1].Unit != "nanoseconds" {
		t.Errorf("period %d of %v, types %v", p.Period, p.PeriodType, p.SampleType)
	}
	for i, want := range []struct {
		addr   uint64
		name   string
		values [2]int64
	}{
		{0xffffffff81000010, "startup_64", [2]int64{3, 3000}},
		{0xffffffff81000020, "startup_64", [2]int64{1, 1000}},
		{0x401000, "[user mode]", [2]int64{1 << 40, -1}},
	} {
		s := p.Sample[i]
		at := s.Location[0]
		if at.Address != want.addr || at.Line[0].Function.Name != want.name || [2]int64(s.Value) != want.values {
			t.Errorf("sample %d: %#x %s %v, not %+v", i, at.Address, at.Line[0].Function.Name, s.Value, want)
		}
	}
	if len(p.Function) != 2 {
		t.Errorf("%d functions, not 2", len(p.Function))
	}
}
