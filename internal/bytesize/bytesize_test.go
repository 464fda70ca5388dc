package bytesize

import "testing"

func TestSet(t *testing.T) {
	for in, want := range map[string]string{"512": "512M", "512M": "512M", "1g": "1G", "2GiB": "2G", "64MB": "64M", "4096K": "4M",
		"": "", "x": "", "-1": "", "1.5G": "", "99999999T": "", "4Q": "", "M": ""} {
		var s Size
		err := s.Set(in)
		if (err == nil) != (want != "") || err == nil && s.String() != want {
			t.Errorf("%q: %v, %v, want %q", in, s, err, want)
		}
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]Size{"512": 512, "1K": 1024, "8191P": 0, "1KK": 0, "+1": 0, "9223372036854775807": 1<<63 - 1, "9223372036854775808": 0} {
		if got, err := Parse(in, 1); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	var s Size
	if err := s.UnmarshalText([]byte("3G")); err != nil || s != 3<<30 {
		t.Errorf("as text: %d, %v", s, err)
	}
}

// TestText writes sizes as they are read again.
func TestText(t *testing.T) {
	for _, s := range []Size{0, 1, 1023, 1024, 1025, 512 << 20, 3 << 40, 1<<63 - 1} {
		var back Size
		b, err := s.MarshalText()
		if err == nil {
			err = back.UnmarshalText(b)
		}
		if err != nil || back != s {
			t.Errorf("%d: %q, and back %d, %v", uint64(s), b, uint64(back), err)
		}
	}
}
