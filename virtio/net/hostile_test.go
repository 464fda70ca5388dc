package net

import "testing"

// TestQueuesWithoutMQ: a driver may enable all queues that the device has, also those
// that it should not know of, and stop them.
func TestQueuesWithoutMQ(t *testing.T) {
	for _, pairs := range []int{1, 2, 4, MaxPairs} {
		for _, without := range []uint64{0, featureMQ} {
			link := &fakeLink{}
			d, err := New(link, Options{MAC: testMAC, Pairs: pairs})
			if err != nil {
				t.Fatal(err)
			}
			d.Start(d.Features()&^without, nil)
			receive := 0
			for i := range d.QueueSizes() {
				if d.IsReceiveQueue(i) {
					receive++
				}
				d.StopQueue(i)
			}
			if receive > pairs {
				t.Errorf("%d pairs without features %#x: %d receive queues", pairs, without, receive)
			}
		}
	}
}
