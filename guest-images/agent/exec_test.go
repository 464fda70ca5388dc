package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// In a busy guest the reader may come only after the time that an output has once its
// command has ended. What was written before then is still the command's output.
func TestLateReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close() // something that the command left behind
	want := strings.Repeat("written before the end\n", 2000)
	if _, err := w.WriteString(want); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	close(ended)
	r.SetReadDeadline(time.Unix(1, 0))
	var got bytes.Buffer
	copyOutput(&got, r, ended)
	if got.String() != want {
		t.Errorf("%d bytes arrived of %d", got.Len(), len(want))
	}
}

// TestDirectoryOfAnother: that a user may not enter the working directory is said of the
// directory, and not of the program.
func TestDirectoryOfAnother(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root runs commands as others")
	}
	base := t.TempDir()
	for dir := base; dir != "/"; dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err != nil || st.Mode()&0o001 == 0 {
			if err := os.Chmod(dir, 0o755); err != nil || !strings.HasPrefix(dir, os.TempDir()+"/") {
				t.Skipf("%s: others cannot come here", dir)
			}
		}
	}
	closed, below := filepath.Join(base, "closed"), filepath.Join(base, "closed/open")
	grouped := filepath.Join(base, "grouped")
	for dir, mode := range map[string]os.FileMode{closed: 0o700, grouped: 0o710} {
		if err := errors.Join(os.Mkdir(dir, mode), os.Chmod(dir, mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(below, 0o755), os.Chown(grouped, 0, 2002)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, dir string
		want      string // "" if it runs
	}{
		{"1001", base, ""},
		{"1001", closed, "directory " + closed + ": user 1001 may not enter it: permission denied"},
		{"1001", below, "directory " + below + ": user 1001 may not enter it: permission denied"},
		{"1001:2002", grouped, ""},
		{"1001", grouped, "directory " + grouped + ": user 1001 may not enter it: permission denied"},
		{"0", closed, ""},
		{"", closed, ""},
	} {
		e := &Exec{Argv: []string{"/bin/true"}, User: c.user, Dir: c.dir}
		cmd, err := (&Server{}).command(e)
		if err != nil {
			t.Fatal(err)
		}
		if err = cmd.Run(); err != nil {
			err = startError(cmd, c.user, err)
		}
		if err == nil && c.want != "" || err != nil && err.Error() != c.want {
			t.Errorf("user %s in %s: %v, want %q", c.user, c.dir, err, c.want)
		}
	}
}
