package bootloader

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"vmm/internal/x86"
	"vmm/kvm"
)

// ram is guest memory contiguous from 0.
type ram []byte

func (m ram) Slice(gpa, n uint64) ([]byte, error) {
	if gpa > uint64(len(m)) || n > uint64(len(m))-gpa {
		return nil, errors.New("not RAM")
	}
	return m[gpa : gpa+n], nil
}

// tinyELF is a 64-bit ELF kernel with code at 16 MiB, and with a PVH note if
// asked for.
func tinyELF(machine uint16, code []byte, pvh bool) []byte {
	var b bytes.Buffer
	w := func(v ...any) {
		for _, x := range v {
			binary.Write(&b, binary.LittleEndian, x)
		}
	}
	const entry, header, ph = uint64(16 << 20), 64, 56
	note := []byte{4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, 'X', 'e', 'n', 0, 0x40, 0, 0, 1}
	at := uint64(header + 2*ph)
	w([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9), uint16(2), machine, uint32(1), entry, uint64(header), uint64(0),
		uint32(0), uint16(header), uint16(ph), uint16(2), uint16(0), uint16(0), uint16(0))
	w(uint32(1), uint32(7), at, entry, entry, uint64(len(code)), uint64(len(code))+4096, uint64(4096))
	kind := uint32(4)
	if !pvh {
		kind = 0x6474e551 // PT_GNU_STACK
	}
	w(kind, uint32(4), at+uint64(len(code)), uint64(0), uint64(0), uint64(len(note)), uint64(len(note)), uint64(4))
	w(code, note)
	return b.Bytes()
}

// tinyBzImage wraps a payload as a bzImage.
func tinyBzImage(payload []byte, change func(h *setupHeader)) []byte {
	code := append(make([]byte, 1024), payload...)
	for len(code)%16 != 0 {
		code = append(code, 0)
	}
	h := setupHeader{SetupSects: 1, Syssize: uint32(len(code) / 16), BootFlag: bootFlagMagic, Header: headerMagic, Version: 0x20f,
		Loadflags: loadedHigh, XLoadflags: xlfKernel64, PayloadOffset: 1024, PayloadLength: uint32(len(payload)),
		PrefAddress: 16 << 20, InitSize: 1 << 20, CmdlineSize: 2047, InitrdAddrMax: 0x7fffffff, KernelAlignment: 2 << 20}
	if change != nil {
		change(&h)
	}
	var b bytes.Buffer
	b.Write(make([]byte, setupHeaderOffset))
	binary.Write(&b, binary.LittleEndian, h)
	b.Write(make([]byte, 1024-b.Len()))
	b.Write(code)
	return b.Bytes()
}

func sized(b []byte, n int) []byte { return binary.LittleEndian.AppendUint32(b, uint32(n)) }

func TestUnpack(t *testing.T) {
	kernel := tinyELF(62, bytes.Repeat([]byte{0x90, 0xf4}, 3000), false)
	pack := map[string]func(w *bytes.Buffer) []byte{
		"none": func(w *bytes.Buffer) []byte { return kernel },
		"gzip": func(w *bytes.Buffer) []byte {
			z := gzip.NewWriter(w)
			z.Write(kernel)
			z.Close()
			return w.Bytes()
		},
		"xz": func(w *bytes.Buffer) []byte {
			z, _ := xz.NewWriter(w)
			z.Write(kernel)
			z.Close()
			return sized(w.Bytes(), len(kernel))
		},
		"zstd": func(w *bytes.Buffer) []byte {
			z, _ := zstd.NewWriter(w)
			z.Write(kernel)
			z.Close()
			return sized(w.Bytes(), len(kernel))
		},
		"lz4": func(w *bytes.Buffer) []byte {
			z := lz4.NewWriter(w)
			z.Apply(lz4.LegacyOption(true))
			z.Write(kernel)
			z.Close()
			return sized(w.Bytes(), len(kernel))
		},
		"lzma": func(w *bytes.Buffer) []byte {
			z, _ := lzma.NewWriter(w)
			z.Write(kernel)
			z.Close()
			return sized(w.Bytes(), len(kernel))
		},
	}
	pack["bzip2"] = func(w *bytes.Buffer) []byte {
		b, _ := hex.DecodeString(bzip2Kernel)
		return sized(b, len(kernel))
	}
	for name, f := range pack {
		t.Run(name, func(t *testing.T) {
			k, err := Parse(tinyBzImage(f(new(bytes.Buffer)), nil))
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Unpack(); err != nil || k.elf == nil || !bytes.Equal(k.data, kernel) {
				t.Errorf("Unpack: %v", err)
			}
			if name == "none" {
				return
			}
			packed := f(new(bytes.Buffer))
			k, err = Parse(tinyBzImage(packed[:len(packed)/2], nil))
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Unpack(); !errors.Is(err, ErrCutOff) {
				t.Errorf("half of it: %v", err)
			}
			k, _ = Parse(tinyBzImage(packed, func(h *setupHeader) { h.InitSize = 4096 }))
			if err := k.Unpack(); !errors.Is(err, errUnpacked) {
				t.Errorf("larger than it says: %v", err)
			}
		})
	}
}

// bzip2Kernel is the kernel of TestUnpack as bzip2 packs it, in hexadecimal:
// the standard library only unpacks.
const bzip2Kernel = "425a6839314159265359fff745450000467fa9ff80d4c0408000414304204006014400c0004000020004002000750d53c9a8" +
	"03469a068f50f5341b4a46843d1a4da86134c833a4a15ca6eeaf9a63d4145a8b836f173b202151d1892aa50f6c381c6f7220" +
	"896e400499a900e2058f92432024caafa5bd6724e30a0102014e3f7f2480402fe2ee48a70a121ffee8a8a0"

func TestUnpackUnknown(t *testing.T) {
	k, err := Parse(tinyBzImage([]byte("LZOP or so"), nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Unpack(); err == nil || !strings.Contains(err.Error(), "unknown compression") {
		t.Errorf("Unpack: %v", err)
	}
}

func TestBadKernels(t *testing.T) {
	elf := tinyELF(62, []byte{0xf4}, false)
	elf32 := append([]byte(nil), elf...)
	elf32[4] = 1
	bz := tinyBzImage(elf, nil)
	for name, c := range map[string]struct {
		data []byte
		want error
		text string
	}{
		"empty":     {nil, ErrNotKernel, ""},
		"text":      {[]byte(strings.Repeat("hello\n", 1000)), ErrNotKernel, ""},
		"arm":       {tinyELF(183, []byte{0}, false), ErrNotKernel, ""},
		"32-bit":    {elf32, Err32Bit, ""},
		"cut ELF":   {elf[:176], ErrCutOff, ""},
		"cut head":  {elf[:20], ErrCutOff, ""},
		"cut bz":    {bz[:len(bz)-64], ErrCutOff, ""},
		"cut setup": {bz[:0x210], ErrCutOff, ""},
		"32-bit bz": {tinyBzImage(elf, func(h *setupHeader) { h.XLoadflags = 0 }), Err32Bit, ""},
		"old":       {tinyBzImage(elf, func(h *setupHeader) { h.Version = 0x204 }), nil, "boot protocol 2.04 is too old"},
		"zImage":    {tinyBzImage(elf, func(h *setupHeader) { h.Loadflags = 0 }), ErrNotKernel, ""},
	} {
		if _, err := Parse(c.data); err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %v %s", name, err, c.want, c.text)
		}
	}
	path := filepath.Join(t.TempDir(), "kernel")
	os.WriteFile(path, []byte("no kernel"), 0o644)
	if _, err := Open(path); err == nil || !strings.HasPrefix(err.Error(), path+": ") {
		t.Errorf("the error does not name the file: %v", err)
	}
}

func testParams() Params {
	return Params{RSDP: 0xe0000, Cmdline: "console=ttyS0", Initrd: bytes.Repeat([]byte("rd"), 5000),
		E820: []E820{{0, 0x9fc00, E820RAM}, {0x100000, 31 << 20, E820RAM}}}
}

func TestLoad(t *testing.T) {
	elf := tinyELF(62, []byte{0xde, 0xad}, true)
	for _, c := range []struct {
		name  string
		image []byte
		proto Protocol
		entry uint64
		long  bool
	}{
		{"elf", elf, Auto, 16 << 20, true},
		{"pvh", elf, PVH, 0x1000040, false},
		{"bzimage", tinyBzImage(elf, nil), Auto, 16<<20 + 0x200, true},
		{"unpacked", tinyBzImage(elf, nil), ELF64, 16 << 20, true},
		{"unpacked pvh", tinyBzImage(elf, nil), PVH, 0x1000040, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := make(ram, 32<<20)
			k, err := Parse(c.image)
			if err != nil {
				t.Fatal(err)
			}
			p := testParams()
			p.Protocol = c.proto
			e, err := k.Load(mem, p)
			if err != nil {
				t.Fatal(err)
			}
			if e.Regs.RIP != c.entry || e.Long != c.long {
				t.Errorf("entry %#x, long %v", e.Regs.RIP, e.Long)
			}
			if s := string(mem[cmdlineAddr : cmdlineAddr+14]); s != "console=ttyS0\x00" {
				t.Errorf("command line %q", s)
			}
			le := binary.LittleEndian
			var at, n uint64
			if c.long {
				bp := mem[bootParams:]
				at, n = uint64(le.Uint32(bp[0x218:])), uint64(le.Uint32(bp[0x21c:]))
				if bp[bpE820Entries] != 2 || le.Uint64(bp[bpACPIRSDP:]) != p.RSDP || le.Uint32(bp[0x202:]) != headerMagic {
					t.Error("boot_params are not right")
				}
			} else {
				info := mem[pvhInfoAddr:]
				mod := mem[le.Uint64(info[16:]):]
				at, n = le.Uint64(mod), le.Uint64(mod[8:])
				if le.Uint64(info[32:]) != p.RSDP || le.Uint32(info[48:]) != 2 || e.Regs.RBX != pvhInfoAddr {
					t.Error("hvm_start_info is not right")
				}
			}
			if n != uint64(len(p.Initrd)) || !bytes.Equal(mem[at:at+n], p.Initrd) || at%4096 != 0 {
				t.Errorf("initrd: %d bytes at %#x", n, at)
			}
			var s kvm.Sregs
			e.Apply(&s)
			if (s.EFER&x86.EFERLMA != 0) != c.long || (s.CS.L == 1) != c.long || s.CR0&x86.CR0PE == 0 {
				t.Errorf("state %+v", s)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	elf := tinyELF(62, []byte{0xf4}, false)
	for name, c := range map[string]struct {
		mem    int
		change func(p *Params)
		image  []byte
		want   string
	}{
		"small memory":  {8 << 20, nil, elf, "needs memory up to"},
		"small for bz":  {16 << 20, nil, tinyBzImage(elf, nil), "needs memory up to"},
		"large initrd":  {32 << 20, func(p *Params) { p.Initrd = make([]byte, 20<<20) }, elf, "initrd (21 MiB) does not fit"},
		"long cmdline":  {32 << 20, func(p *Params) { p.Cmdline = strings.Repeat("a", 2048) }, elf, "2048 bytes, at most 2047"},
		"no PVH":        {32 << 20, func(p *Params) { p.Protocol = PVH }, elf, "no PVH entry"},
		"ELF as bz":     {32 << 20, func(p *Params) { p.Protocol = BzImage }, elf, "no bzImage entry"},
		"many in E820":  {32 << 20, func(p *Params) { p.E820 = append(p.E820, make([]E820, 200)...) }, elf, "at most 128"},
		"low addresses": {32 << 20, nil, lowELF(elf), "below 1 MiB"},
	} {
		k, err := Parse(c.image)
		if err != nil {
			t.Fatal(err)
		}
		p := testParams()
		if c.change != nil {
			c.change(&p)
		}
		if _, err := k.Load(make(ram, c.mem), p); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// lowELF moves the segment to where the boot information is.
func lowELF(elf []byte) []byte {
	out := append([]byte(nil), elf...)
	binary.LittleEndian.PutUint64(out[64+24:], 0x8000)
	return out
}

func TestCmdline(t *testing.T) {
	defaults := []string{"console=ttyS0", "panic=-1"}
	for user, want := range map[string]string{
		"":                          "console=ttyS0 panic=-1",
		"quiet":                     "console=ttyS0 panic=-1 quiet",
		"panic=5 root=/dev/vda":     "console=ttyS0 panic=5 root=/dev/vda",
		"console=tty1 console=hvc0": "panic=-1 console=tty1 console=hvc0",
		`a="panic=1 x"`:             `console=ttyS0 panic=-1 a="panic=1 x"`,
		"-- panic=9":                "console=ttyS0 panic=-1 -- panic=9",
	} {
		if got := Cmdline(defaults, user); got != want {
			t.Errorf("Cmdline(%q) = %q, want %q", user, got, want)
		}
	}
}

func TestJoinInitrds(t *testing.T) {
	got := JoinInitrds([]byte("abcde"), []byte("fg"), []byte("hijk"))
	if string(got) != "abcde\x00\x00\x00fg\x00\x00hijk" {
		t.Errorf("%q", got)
	}
}

// FuzzParse parses and loads any file.
func FuzzParse(f *testing.F) {
	elf := tinyELF(62, []byte{0xf4}, true)
	f.Add(elf)
	f.Add(tinyBzImage(elf, nil))
	mem := make(ram, 32<<20)
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := Parse(data)
		if err != nil {
			return
		}
		for _, proto := range Protocols {
			p := testParams()
			p.Protocol = proto
			if e, err := k.Load(mem, p); err == nil && e == nil {
				t.Fatal("neither an entry nor an error")
			}
		}
	})
}

// FuzzUnpack unpacks any payload.
func FuzzUnpack(f *testing.F) {
	for _, magic := range []string{"\x1f\x8b\x08", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd", "\x02\x21\x4c\x18", "\x04\x22\x4d\x18", "\x5d\x00\x00", "BZh"} {
		f.Add([]byte(magic + "\x00\x01\x02\x03\x04\x05\x06\x07"))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if out, err := unpack(data, 1<<16); err == nil && len(out) > 1<<16 && !bytes.HasPrefix(data, []byte("\x7fELF")) {
			t.Fatalf("%d bytes", len(out))
		}
	})
}

// TestUKI takes the kernel out of a unified kernel image, but not out of one in it.
func TestUKI(t *testing.T) {
	bz := make([]byte, 4096)
	copy(bz[0x202:], "HdrS")
	wrap := func(kernel []byte) []byte {
		b := make([]byte, 512)
		copy(b, "MZ")
		b[0x3c] = 0x40
		copy(b[0x40:], "PE\x00\x00\x64\x86\x02\x00")
		section := func(i int, name string, data []byte) {
			h := b[0x58+40*i:]
			copy(h, name)
			for _, at := range []int{8, 16} {
				h[at], h[at+1] = byte(len(data)), byte(len(data)>>8)
			}
			h[20], h[21] = byte(len(b)), byte(len(b)>>8)
			b = append(b, data...)
		}
		section(0, ".cmdline", []byte("quiet root=/dev/vda2"))
		section(1, ".linux", kernel)
		return b
	}
	_, want := Parse(bz)
	if _, err := Parse(wrap(bz)); want == nil || err == nil || !strings.Contains(err.Error(), want.Error()) || !strings.Contains(err.Error(), "unified") {
		t.Errorf("%v, want %v", err, want)
	}
	if _, err := Parse(wrap(wrap(bz))); !errors.Is(err, ErrNotKernel) {
		t.Errorf("one in another: %v", err)
	}
}
