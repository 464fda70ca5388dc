package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/term"
)

// layersProgress shows how much of each layer of an image has come: on a terminal a bar for
// each, which is drawn anew, elsewhere a line when one is there.
type layersProgress struct {
	out   io.Writer
	live  bool
	start time.Time

	mu     sync.Mutex
	order  []v1.Hash
	layers map[v1.Hash]*layerProgress
	drawn  time.Time
	lines  int // that are drawn
}

// layerProgress is how much of a layer has come, in bytes.
type layerProgress struct {
	done, total int64
	there       bool // without that it came
}

// layersInterval is how often the bars are drawn.
const layersInterval = 100 * time.Millisecond

func newLayersProgress(out *os.File) *layersProgress {
	return &layersProgress{out: out, live: term.IsTerminal(int(out.Fd())), start: time.Now(), layers: map[v1.Hash]*layerProgress{}}
}

// show is told what has come. It may be called from several goroutines.
func (p *layersProgress) show(layer v1.Hash, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.layers[layer]
	if l == nil {
		l = &layerProgress{done: -1}
		p.layers[layer] = l
		p.order = append(p.order, layer)
	}
	if done == l.done && total == l.total {
		return
	}
	l.done, l.total = done, total
	if done < 0 {
		l.done, l.there = total, true
	}
	switch {
	case p.live:
		p.draw(false)
	case l.done == total:
		fmt.Fprintln(p.out, l.line(layer))
	}
}

// draw draws the bars over those that are drawn.
func (p *layersProgress) draw(last bool) {
	if !last && (time.Since(p.drawn) < layersInterval || time.Since(p.start) < progressDelay) {
		return
	}
	p.drawn = time.Now()
	var b strings.Builder
	if p.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.lines) // up again
	}
	for _, h := range p.order {
		fmt.Fprintf(&b, "\r%s\x1b[K\n", p.layers[h].line(h))
	}
	p.lines = len(p.order)
	io.WriteString(p.out, b.String())
}

// end leaves the bars as they are at the end, if any were drawn.
func (p *layersProgress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lines > 0 {
		p.draw(true)
	}
}

// shortDigest is how much of a digest is shown.
const shortDigest = 12

// layersBar is the width of a bar.
const layersBar = 30

// line is what is shown of a layer.
func (l *layerProgress) line(layer v1.Hash) string {
	short := layer.Hex[:shortDigest]
	switch {
	case l.there:
		return short + ": already here"
	case l.done == l.total:
		return fmt.Sprintf("%s: %s", short, humanSize(l.total))
	}
	full := int(l.done * layersBar / max(1, l.total))
	return fmt.Sprintf("%s: [%-*s] %s of %s", short, layersBar, strings.Repeat("=", full), humanSize(l.done), humanSize(l.total))
}
