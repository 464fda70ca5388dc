package ratelimit

import (
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	var b Bucket
	b.Set(100)
	now := b.at
	if d := b.Take(150, now); d != 0 {
		t.Errorf("the burst had to wait %v", d)
	}
	if d := b.Try(1, now); d != 500*time.Millisecond {
		t.Errorf("Try with 50 tokens of debt: %v", d)
	}
	if d := b.Take(1, now); d != 500*time.Millisecond {
		t.Errorf("50 tokens of debt: %v", d)
	}
	if d := b.Take(0, now.Add(time.Hour)); d != 0 {
		t.Errorf("after an hour: %v", d)
	}
	if b.tokens > 100 {
		t.Errorf("more than a burst was saved: %v", b.tokens)
	}
	var free Bucket
	if free.Bounded() || free.Take(1<<40, now) != 0 || free.Try(1<<40, now) != 0 {
		t.Error("a bucket without a rate bounds")
	}
}

func TestSleep(t *testing.T) {
	done := make(chan struct{})
	if !Sleep(time.Microsecond, done) {
		t.Error("Sleep was cut off")
	}
	close(done)
	if Sleep(time.Hour, done) {
		t.Error("Sleep went on")
	}
}
