package machine

import (
	"bufio"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"vmm/machine/pprof"
)

// profilePeriod is the time between two samples of each vCPU.
const profilePeriod = time.Millisecond

// profiler samples where the vCPUs are.
type profiler struct {
	symbols string
	mu      sync.Mutex
	samples map[uint64]int64
}

// StartProfile makes the machine sample its vCPUs' instruction pointers while
// it runs. systemMap is the path of the kernel's System.map, or empty: samples are
// addresses then. Call it before Run.
func (m *Machine) StartProfile(systemMap string) {
	m.profile = &profiler{symbols: systemMap, samples: map[uint64]int64{}}
}

// start samples until the function that it returns is called.
func (p *profiler) start(cpus []*vcpu) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	cpus = append([]*vcpu(nil), cpus...)
	go func() {
		defer close(ended)
		t := time.NewTicker(profilePeriod)
		defer t.Stop()
		for {
			select {
			case <-quit:
				return
			case <-t.C:
			}
			for _, v := range cpus {
				v.sample.Store(true)
				v.kick()
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
	}
}

// add notes where a vCPU is; it runs on the vCPU's thread.
func (p *profiler) add(v *vcpu) {
	var rip uint64
	if v.in != nil {
		rip = v.in.cpu.RIP()
	} else if r, err := v.engine.Regs(); err == nil {
		rip = r.RIP
	}
	p.mu.Lock()
	p.samples[rip]++
	p.mu.Unlock()
}

// symbol is a line of System.map.
type symbol struct {
	addr uint64
	name string
}

// readSymbols reads the code symbols of a System.map, sorted by address.
func readSymbols(path string) ([]symbol, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []symbol
	s := bufio.NewScanner(f)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) != 3 || !strings.ContainsAny(fields[1], "tTwW") {
			continue
		}
		if addr, err := strconv.ParseUint(fields[0], 16, 64); err == nil {
			out = append(out, symbol{addr, fields[2]})
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].addr < out[j].addr })
	return out, s.Err()
}

// name returns the symbol that an address lies in.
func name(symbols []symbol, addr uint64) string {
	const kernelHalf = 1 << 63
	if addr < kernelHalf {
		return "[user mode]"
	}
	i := sort.Search(len(symbols), func(i int) bool { return symbols[i].addr > addr })
	if i == 0 {
		return "[kernel]"
	}
	return symbols[i-1].name
}

// WriteProfile writes the samples in the format of pprof. Call it after Run.
func (m *Machine) WriteProfile(w io.Writer) error {
	p := m.profile
	var symbols []symbol
	if p.symbols != "" {
		var err error
		if symbols, err = readSymbols(p.symbols); err != nil {
			return err
		}
	}
	e := pprof.NewEncoder(w, "samples", "count", "time", "nanoseconds")
	e.Period(int64(profilePeriod))
	for addr, n := range p.samples {
		e.Sample(addr, name(symbols, addr), n, n*int64(profilePeriod))
	}
	return e.Close()
}
