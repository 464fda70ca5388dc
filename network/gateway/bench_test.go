package gateway

import "testing"

// BenchmarkNew is what a network adds to the start of a VM.
func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		g, err := New(Config{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		g.Close()
		b.StartTimer()
	}
}
