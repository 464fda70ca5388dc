package share

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestEscapeByRaces lets programs of the host rename directories and put symbolic links
// to elsewhere in their place while guests look names up, open, create, move and remove:
// nothing outside the share is read or changed.
func TestEscapeByRaces(t *testing.T) {
	g := start(t, Options{})
	outside := filepath.Join(filepath.Dir(g.dir), "outside")
	fill := func(dir, content string) {
		for _, sub := range []string{"", "dir", "dir/sub"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, sub, "file"), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(outside, "outside")
	fill(g.dir, "inside")
	fill(filepath.Join(g.dir, "deep/down"), "inside")
	before := listing(t, outside)
	// What changes places: directories with one another, and with links.
	swaps := [][2]string{{"dir", "link"}, {"deep/down", "uplink"}, {"dir/sub", "deep/down/dir"}, {"file", "filelink"}, {"deep/down/sub", "deep"}, {"deep/down/dir", "dir/sub"}}
	for link, to := range map[string]string{"link": outside, "uplink": "../outside", "filelink": "../outside/file"} {
		if err := os.Symlink(to, filepath.Join(g.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	var host, guests sync.WaitGroup
	for i := range 2 {
		host.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for {
				select {
				case <-done:
					return
				default:
				}
				s := swaps[r.IntN(len(swaps))]
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(g.dir, s[0]), unix.AT_FDCWD, filepath.Join(g.dir, s[1]), unix.RENAME_EXCHANGE)
			}
		})
	}
	for i := range 3 {
		guests.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 2))
			for range 1000 {
				g.wander(r)
			}
		})
	}
	guests.Wait()
	close(done)
	host.Wait()
	if after := listing(t, outside); after != before {
		t.Errorf("outside, there is now\n%swhere there was\n%s", after, before)
	}
}

// wander goes down some names and does something there.
func (g *guest) wander(r *rand.Rand) {
	names := []string{"dir", "sub", "deep", "down", "link", "uplink", "file", "filelink"}
	name := func() string { return names[r.IntN(len(names))] }
	at := uint64(fuse.FUSE_ROOT_ID)
	for range r.IntN(5) {
		if out, s := g.lookup(at, name()); s == fuse.OK {
			at = out.NodeId
		}
	}
	h := head(at)
	switch r.IntN(8) {
	case 0, 1:
		if fh, s := g.open(at, unix.O_RDONLY); s == fuse.OK {
			b := make([]byte, 100)
			if res, s := g.fs.Read(nil, &fuse.ReadIn{Fh: fh, Size: 100}, nil); s == fuse.OK {
				if text, _ := res.Bytes(b); strings.Contains(string(text), "outside") {
					g.t.Errorf("the guest reads %q", text)
				}
				res.Done()
			}
			g.fs.Release(nil, &fuse.ReleaseIn{Fh: fh})
		}
	case 2:
		if fh, s := g.open(at, unix.O_RDWR|unix.O_TRUNC); s == fuse.OK {
			g.fs.Writev(nil, &fuse.WriteIn{Fh: fh}, [][]byte{[]byte("guest")})
			g.fs.Release(nil, &fuse.ReleaseIn{Fh: fh})
		}
	case 3:
		var out fuse.CreateOut
		in := &fuse.CreateIn{InHeader: h, Flags: unix.O_RDWR | unix.O_TRUNC, Mode: 0o644}
		if g.fs.Create(nil, in, name(), &out) == fuse.OK {
			g.fs.Writev(nil, &fuse.WriteIn{Fh: out.Fh}, [][]byte{[]byte("guest")})
			g.fs.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
		}
	case 4:
		g.fs.Mkdir(nil, &fuse.MkdirIn{InHeader: h, Mode: 0o755}, name(), &fuse.EntryOut{})
	case 5:
		g.fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_SIZE | fuse.FATTR_MODE, Size: 3, Mode: 0o777}}, &fuse.AttrOut{})
	case 6:
		if out, s := g.lookup(fuse.FUSE_ROOT_ID, name()); s == fuse.OK {
			g.fs.Link(nil, &fuse.LinkIn{InHeader: h, Oldnodeid: out.NodeId}, name(), &fuse.EntryOut{})
		}
	case 7:
		if r.IntN(10) == 0 {
			g.fs.Unlink(nil, &h, "file")
		}
	}
}

// listing is what there is below a directory, with modes and content.
func listing(t *testing.T, dir string) string {
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		out.WriteString(info.Mode().String() + " " + path)
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			out.WriteString(" " + string(b))
		}
		out.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
