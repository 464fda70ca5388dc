package virtio

import (
	"encoding/json"
	"errors"
	"sync"
	"testing"
)

// TestStateIsACopy runs the guest while its device's state is written: what the
// guest does then is not in the state, nor does it race with the write.
func TestStateIsACopy(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	g.negotiate(FeatureVersion1)
	g.run()
	g.Suspend()
	s, err := g.Save()
	g.Resume()
	if err != nil {
		t.Fatal(err)
	}
	encode := func() string {
		b, err := json.Marshal(s)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	before, over := encode(), make(chan struct{})
	go func() {
		defer close(over)
		for i := range uint64(200) {
			g.set(barMSIX+16, 8, 0xfee00000|i<<12)
			g.set(barMSIX+16+8, 8, i)
			g.set(regQueueSel, 2, 0)
			g.set(regQueueVector, 2, i%2)
			g.ConfigWrite(4, []byte{6, byte(i&1) << 2})
		}
	}()
	for done := false; !done; {
		select {
		case <-over:
			done = true
		default:
		}
		if after := encode(); after != before {
			t.Fatalf("the state has changed while it was written:\n%s\n%s", before, after)
		}
	}
}

// TestSuspend: a suspended device tells its driver nothing, and Suspend and Resume
// hold no lock, so that each may come once too often.
func TestSuspend(t *testing.T) {
	g := newPCIGuest(t)
	g.negotiate(FeatureVersion1)
	g.run()
	if _, err := g.Save(); err == nil {
		t.Error("a running device is saved")
	}
	g.Resume()
	g.Suspend()
	g.Suspend()
	g.dev.control.ConfigChanged()
	s, err := g.Save()
	if err != nil || s.Generation != 0 || s.ISR != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	g.m.desc(0, 0, testData, 7, 0, 0)
	g.m.publish(0)
	g.set(barNotify, 2, 0)
	if g.used() != 0 || g.pin.get() {
		t.Error("a suspended device serves its driver")
	}
	g.Resume()
	g.Resume()
	eventually(t, "the chain is used", func() bool { return g.used() == 1 })
	if g.get(regGeneration, 1) != 1 || g.get(barISR, 1)&isrConfig == 0 {
		t.Error("the driver is not told of the new configuration")
	}
	g.Suspend()
	for range 2 {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
	g.Resume()
	if g.run(); g.get(regStatus, 1) != 0 {
		t.Error("a closed device starts")
	}
}

// TestLoadFeatures: features that the device does not have are an error in a state once
// they are agreed on; before, a driver may write any.
func TestLoadFeatures(t *testing.T) {
	for _, c := range []struct {
		status uint8
		fits   bool
	}{{statusAcknowledge | statusDriver, true}, {statusAcknowledge | statusDriver | statusFeaturesOK, false}} {
		g := newPCIGuest(t)
		g.set(regDriverFeatureSel, 4, 0)
		g.set(regDriverFeature, 4, 0x80000000)
		g.set(regStatus, 1, statusAcknowledge|statusDriver)
		g.Suspend()
		s, err := g.Save()
		if err != nil || s.Accepted != 0x80000000 {
			t.Fatalf("%+v, %v", s, err)
		}
		s.Status = c.status
		other := newPCIGuest(t)
		if err := other.Load(s); c.fits != (err == nil) || !c.fits && !errors.Is(err, ErrState) {
			t.Errorf("status %#x: %v", c.status, err)
		}
		g.Close()
		other.Close()
	}
}

// TestClose closes a device while all else is called.
func TestClose(t *testing.T) {
	for range 20 {
		g := newPCIGuest(t)
		g.negotiate(FeatureVersion1)
		g.run()
		control := g.dev.control
		var group sync.WaitGroup
		for _, do := range []func(){
			g.Suspend, g.Resume, g.Suspend, control.ConfigChanged, func() { control.NeedsReset(ErrMalformed) }, func() { control.Wake(0) },
			func() { g.Save() }, func() { g.set(barNotify, 2, 0) }, func() { g.set(regStatus, 1, 0) },
			func() { g.Close() }, func() { g.Close() },
		} {
			group.Go(func() {
				for range 20 {
					do()
				}
			})
		}
		group.Wait()
		if g.get(regStatus, 1) != 0 || len(g.h.events) != 0 {
			t.Errorf("status %#x and events %v of a closed device", g.get(regStatus, 1), g.h.events)
		}
	}
}
