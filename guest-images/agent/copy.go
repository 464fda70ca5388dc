package agent

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/internal/paths"
)

// PutOptions say how Put copies.
type PutOptions struct {
	// Follow copies what a link leads to, if the path ends with one.
	Follow bool
}

// Put copies a file or directory of the host to a path of the guest, relative to its root,
// as docker cp does: into it if it is a directory, else under that name in a directory that
// must be there. What the name of a directory and "/." stand for is what is in it. A file
// that is there is written to, and so are devices and pipes.
func (c *Client) Put(ctx context.Context, from, to string, o PutOptions) error {
	abs, err := paths.Abs(from)
	if err != nil {
		return err
	}
	in := copyIn{To: rooted(to), Top: filepath.Base(abs), Content: namesContent(from)}
	if in.Top == "/" {
		in.Top, in.Content = rootName, true
	}
	return c.put(ctx, in, func(w io.Writer) error { return archive(w, from, in.Top, o.Follow) }, true)
}

// PutArchive unpacks a tar archive in a directory of the guest, which must be there. When
// the guest does not take it, r may be read once more after PutArchive has returned.
func (c *Client) PutArchive(ctx context.Context, r io.Reader, to string) error {
	return c.put(ctx, copyIn{To: rooted(to)}, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	}, false)
}

// put sends an archive. It waits for the end of send, if it is told to.
func (c *Client) put(ctx context.Context, in copyIn, send func(io.Writer) error, wait bool) error {
	conn, l, err := c.begin(ctx, Request{Op: OpPut, In: &in})
	if err != nil {
		return err
	}
	defer closeWith(ctx, conn)()
	// The guest may say early that it has no room: then it is heard, and the rest
	// of the archive is of no use.
	sent := make(chan error, 1)
	go func() {
		err := send(writer{l, FrameStdin})
		if err == nil {
			err = l.Send(FrameStdin, nil)
		}
		if ours(err) != nil { // else the guest may have said why it takes no more
			conn.Close()
		}
		sent <- err
	}()
	if _, err = reply(l); err == nil {
		return <-sent
	}
	conn.Close()
	if !wait {
		select {
		case local := <-sent:
			return cmp.Or(ours(local), err)
		default:
			return err
		}
	}
	return cmp.Or(ours(<-sent), err)
}

// ours is an error of sending that is not of the connection.
func ours(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// rooted is a path of the guest, where relative ones begin at its root. How it ends stays.
func rooted(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}

// namesContent reports whether a path stands for what is in a directory: "." and what ends
// with "/.".
func namesContent(path string) bool { return path != "" && filepath.Base(path) == "." }

// rootName is what all of a root is called in an archive.
const rootName = "root"

// GetOptions bound what a guest that nobody trusts can do with an answer, and say how it is
// asked.
type GetOptions struct {
	// MaxSize is how much may come, in bytes and with each file in blocks of 4 KiB; 0 is what
	// is free where it goes, but for 64 MiB.
	MaxSize int64
	// Guest are directories that the guest can write to: where the way to the destination
	// leads through a symbolic link there, it is refused with a paths.GuestError.
	Guest []string
	// Follow copies what a link leads to, if the path ends with one.
	Follow bool
}

// Get copies a file or directory of the guest to a path of the host, by the same rules as
// Put. Nothing else is taken than what was asked for and what is below it, and nothing is
// written through a symbolic link of the archive or in a directory that is merged. A
// TooLargeError says that more came than may; what had come until then stays.
func (c *Client) Get(ctx context.Context, from, to string, o GetOptions) error {
	from = rooted(from)
	x := &extraction{to: to, content: namesContent(from), base: filepath.Base(filepath.Clean(from)), guest: o.Guest, limit: o.MaxSize, fits: o.MaxSize == 0, ctx: ctx}
	if x.top = x.base; x.base == "/" {
		x.base, x.top = "", rootName
	}
	if err := x.refused(); err != nil {
		return err
	}
	return c.get(ctx, Request{Op: OpGet, Out: &copyOut{From: from, Top: x.top, Follow: o.Follow}}, x.unpack)
}

// GetArchive writes a file or directory of the guest as a tar archive, as the guest makes
// it. Of the options MaxSize counts, for the whole archive.
func (c *Client) GetArchive(ctx context.Context, from string, w io.Writer, o GetOptions) error {
	from = rooted(from)
	top := filepath.Base(filepath.Clean(from))
	if top == "/" || namesContent(from) {
		top = "."
	}
	return c.get(ctx, Request{Op: OpGet, Out: &copyOut{From: from, Top: top, Follow: o.Follow}}, func(r io.Reader) error {
		if o.MaxSize == 0 {
			_, err := io.Copy(w, r)
			return err
		}
		n, err := io.Copy(w, io.LimitReader(r, o.MaxSize))
		if err == nil && n == o.MaxSize {
			if more, _ := r.Read(make([]byte, 1)); more > 0 {
				return &TooLargeError{o.MaxSize}
			}
		}
		return err
	})
}

// get receives what the guest answers a request with in frames of FrameStdout.
func (c *Client) get(ctx context.Context, request Request, take func(io.Reader) error) error {
	conn, l, err := c.begin(ctx, request)
	if err != nil {
		return err
	}
	defer closeWith(ctx, conn)()
	// A guest that cannot read it says so in the place of the archive.
	r := &reader{l: l, kind: FrameStdout}
	err = take(r)
	if r.refused != nil {
		return r.refused
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return lost(err)
	}
	_, err = reply(l)
	return err
}
