package loglimit

import (
	"errors"
	"strings"
	"sync"
	"testing"
)

func TestNew(t *testing.T) {
	var mu sync.Mutex
	var got []error
	log := New(func(err error) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, err)
	})
	mistake := errors.New("a mistake")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10 * Most {
				log(mistake)
			}
		})
	}
	all.Wait()
	last := 0
	for _, err := range got {
		if !errors.Is(err, mistake) {
			t.Error(err)
		}
		if strings.Contains(err.Error(), "no more") {
			last++
		}
	}
	if len(got) != Most+1 || last != 1 {
		t.Errorf("%d lines, %d of which are the last; want %d and 1", len(got), last, Most+1)
	}
}
