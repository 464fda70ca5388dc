// Hostileguest is a guest without an operating system that attacks the VMM from inside: all
// virtio devices at once, by package hostile, and what else a PC has. It is Go, but Go's own
// start never runs (cpu_amd64.s): there is no heap, no goroutine, and no package is
// initialized. TestHostileGuest makes it and gives it to vmm as a kernel:
//
//	go build -ldflags '-E main.entry' -o guest ./tests/hostileguest
//	vmm run --kernel guest -c 2 -m 256M --append hostile=SEED
//
// It never ends by itself. On the serial port it says how many rounds are done.
package main

import (
	"math/rand/v2"
	"sync/atomic"
)

func main() { println("this is a guest for vmm: see TestHostileGuest") }

// cpu is a CPU that attacks.
type cpu struct {
	id    uint64
	begun bool
	pcg   rand.PCG
	rand  rand.Rand
}

var (
	all    [cpus]cpu
	seed   uint64
	rounds atomic.Uint64
	// printing is set while a CPU needs the serial port.
	printing atomic.Bool
)

// run attacks for ever. It is called again after each exception.
func run(id uint64) {
	c := &all[id]
	if root == 0 {
		prepare()
		restart()
	}
	printing.Store(false)
	if !c.begun {
		c.begun = true
		if c.id = id; id == 0 {
			readArguments()
			findDevices()
			say("devices ", uint64(found), "\n")
			startSecond()
		}
		c.pcg.Seed(seed, id)
		c.rand = *rand.New(&c.pcg)
	}
	for {
		c.round()
		if n := rounds.Add(1); n%reportEvery == 0 {
			report(n)
		}
	}
}

const reportEvery = 50

// report says how many rounds are done, and how often each device has answered.
func report(n uint64) {
	say("round ", n, " of seed ", seed, ", exceptions ", faults, ", answers")
	for i := range devices[:found] {
		say(" ", devices[i].target.Answers.Load())
	}
	say(".\n")
}

// round does some things to one device, or to the platform.
func (c *cpu) round() {
	n := 16 + c.rand.IntN(48)
	if found > 0 && c.rand.IntN(4) > 0 {
		c.attackDevice(&devices[c.rand.IntN(found)], n)
	} else {
		for range n {
			c.attackPlatform()
		}
	}
	breathe(1 + c.rand.Uint64N(16))
}

// Of boot_params: cmd_line_ptr (boot.rst).
const cmdLinePtr = 0x228

// readArguments takes the seed from the kernel's arguments: hostile=SEED.
func readArguments() {
	const name = "hostile="
	at := load(bootParams+cmdLinePtr, 4)
	for matched := 0; ; at++ {
		switch c := byte(load(at, 1)); {
		case matched == len(name) && c >= '0' && c <= '9':
			seed = seed*10 + uint64(c-'0')
		case c == 0 || matched == len(name):
			return
		case c == name[matched]:
			matched++
		default:
			matched = 0
		}
	}
}

// say writes texts and numbers to the serial port.
func say(parts ...any) {
	for !printing.CompareAndSwap(false, true) {
		breathe(1)
	}
	out(uart+3, 3, 1)   // 8 bits, no divisor latch
	out(uart+4, 0xb, 1) // no loop
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			for i := range len(p) {
				printByte(p[i])
			}
		case uint64:
			var digits [20]byte
			n := len(digits)
			for first := true; first || p > 0; first = false {
				n--
				digits[n], p = byte('0'+p%10), p/10
			}
			for _, d := range digits[n:] {
				printByte(d)
			}
		}
	}
	printing.Store(false)
}

func printByte(b byte) {
	for range 1000 {
		if in(uart+5, 1)&0x20 != 0 {
			break
		}
	}
	out(uart, uint64(b), 1)
}
