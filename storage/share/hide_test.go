package share

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestHide tries in every way to come to what is hidden, and to what would be if it were
// there.
func TestHide(t *testing.T) {
	g := start(t, Options{Hide: []string{"home/.ssh", "home/.netrc", "home/.config/gcloud", "home/.aws", "link"}})
	for path, text := range map[string]string{
		"home/.ssh/id": "secret", "home/.netrc": "secret", "home/.config/gcloud/key": "secret", "home/.config/seen": "seen", "home/seen": "seen",
	} {
		path = filepath.Join(g.dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	// Other names of the same files.
	if err := errors.Join(os.Link(filepath.Join(g.dir, "home/.netrc"), filepath.Join(g.dir, "other")),
		os.Symlink("home/.ssh", filepath.Join(g.dir, "link"))); err != nil {
		t.Fatal(err)
	}
	// The file system of a guest that mounts it now.
	f, err := New(g.dir, g.fs.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g = &guest{t, f, g.dir}

	seen := g.walk("home/.config/seen")
	if fh, s := g.open(seen.NodeId, unix.O_RDONLY); s != fuse.OK || g.read(fh, 10) != "seen" {
		t.Errorf("what is not hidden: %v", s)
	}
	home, ssh, netrc, other, link := g.walk("home"), g.walk("home/.ssh"), g.walk("home/.netrc"), g.walk("other"), g.walk("link")
	for name, n := range map[string]fuse.EntryOut{"a directory": ssh, "a file": netrc, "its other name": other, "a link": link} {
		if n.Mode&0o7777 != 0 || n.Size != 0 {
			t.Errorf("%s: mode %o, %d bytes", name, n.Mode, n.Size)
		}
		var out fuse.AttrOut
		if s := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: head(n.NodeId)}, &out); s != fuse.OK || out.Mode&0o7777 != 0 || out.Size != 0 {
			t.Errorf("%s: attributes %v, mode %o, %d bytes", name, s, out.Mode, out.Size)
		}
	}
	if _, s := g.lookup(ssh.NodeId, "id"); s != fuse.ENOENT {
		t.Errorf("below a hidden directory: %v", s)
	}
	var opened fuse.OpenOut
	if s := f.OpenDir(nil, &fuse.OpenIn{InHeader: head(ssh.NodeId)}, &opened); s != fuse.OK {
		t.Errorf("a hidden directory: %v", s)
	}
	list := fuse.NewDirEntryList(make([]byte, 4096), 0)
	if s := f.ReadDir(nil, &fuse.ReadIn{InHeader: head(ssh.NodeId), Fh: opened.Fh, Size: 4096}, list); s != fuse.OK || list.Offset != 0 {
		t.Errorf("its entries: %v, up to %d", s, list.Offset)
	}
	for name, n := range map[string]fuse.EntryOut{"a file": netrc, "its other name": other} {
		if fh, s := g.open(n.NodeId, unix.O_RDONLY); s != fuse.OK || g.read(fh, 10) != "" {
			t.Errorf("%s: %v, and it is not empty", name, s)
		}
	}
	h := func(n fuse.EntryOut) *fuse.InHeader { h := head(n.NodeId); return &h }
	var entry fuse.EntryOut
	var created fuse.CreateOut
	for name, s := range map[string]fuse.Status{
		"write":               func() fuse.Status { _, s := g.open(netrc.NodeId, unix.O_RDWR); return s }(),
		"write by other name": func() fuse.Status { _, s := g.open(other.NodeId, unix.O_WRONLY); return s }(),
		"truncate":            f.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: head(netrc.NodeId), Valid: fuse.FATTR_SIZE}}, &fuse.AttrOut{}),
		"chmod":               f.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: head(ssh.NodeId), Valid: fuse.FATTR_MODE, Mode: 0o777}}, &fuse.AttrOut{}),
		"read a link":         func() fuse.Status { _, s := f.Readlink(nil, h(link)); return s }(),
		"link":                f.Link(nil, &fuse.LinkIn{InHeader: head(home.NodeId), Oldnodeid: netrc.NodeId}, "mine", &entry),
		"unlink":              f.Unlink(nil, h(home), ".netrc"),
		"rename":              f.Rename(nil, &fuse.RenameIn{InHeader: head(home.NodeId), Newdir: home.NodeId}, ".ssh", "mine"),
		"rename its parent":   f.Rename(nil, &fuse.RenameIn{InHeader: head(fuse.FUSE_ROOT_ID), Newdir: fuse.FUSE_ROOT_ID}, "home", "mine"),
		"rename over it":      f.Rename(nil, &fuse.RenameIn{InHeader: head(home.NodeId), Newdir: home.NodeId}, "seen", ".netrc"),
		"make in it":          f.Create(nil, &fuse.CreateIn{InHeader: head(ssh.NodeId), Flags: unix.O_WRONLY, Mode: 0o600}, "authorized_keys", &created),
		"make what is not":    f.Mkdir(nil, &fuse.MkdirIn{InHeader: head(home.NodeId), Mode: 0o700}, ".aws", &entry),
		"create over it":      f.Create(nil, &fuse.CreateIn{InHeader: head(home.NodeId), Flags: unix.O_WRONLY | unix.O_TRUNC, Mode: 0o600}, ".netrc", &created),
		"create over another": f.Create(nil, &fuse.CreateIn{InHeader: head(fuse.FUSE_ROOT_ID), Flags: unix.O_WRONLY | unix.O_TRUNC, Mode: 0o600}, "other", &created),
	} {
		if s != fuse.EACCES {
			t.Errorf("%s: %v", name, s)
		}
	}
	if s := f.Mkdir(nil, &fuse.MkdirIn{InHeader: head(g.walk("home/.config").NodeId), Mode: 0o700}, "mine", &entry); s != fuse.OK {
		t.Errorf("beside what is hidden: %v", s)
	}
	for _, path := range []string{"home/.netrc", "home/.ssh/id", "home/.config/gcloud/key"} {
		if b, err := os.ReadFile(filepath.Join(g.dir, path)); string(b) != "secret" || err != nil {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}

	// What comes later is hidden by its name, and all stays so in a saved guest.
	if err := os.Mkdir(filepath.Join(g.dir, "home/.aws"), 0o755); err != nil {
		t.Fatal(err)
	}
	if aws := g.walk("home/.aws"); aws.Mode&0o7777 != 0 {
		t.Errorf("made later: mode %o", aws.Mode)
	}
	state, err := f.Save()
	if err != nil {
		t.Fatal(err)
	}
	again, err := New(g.dir, f.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Load(state); err != nil {
		t.Fatal(err)
	}
	g = &guest{t, again, g.dir}
	if fh, s := g.open(netrc.NodeId, unix.O_RDONLY); s != fuse.OK || g.read(fh, 10) != "" {
		t.Errorf("a file in the restored guest: %v, and it is not empty", s)
	}
	if _, s := g.lookup(ssh.NodeId, "id"); s != fuse.ENOENT {
		t.Errorf("lookup in the restored guest: %v", s)
	}
	if _, s := g.open(seen.NodeId, unix.O_RDONLY); s != fuse.OK {
		t.Errorf("what is not hidden, in the restored guest: %v", s)
	}
}
