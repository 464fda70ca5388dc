// Package visible makes text that comes from a guest or a peer fit for a terminal: what
// would move the cursor, change a title, answer as if typed or turn the direction of
// writing is shown, as cat -v shows it, and not done.
package visible

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Text makes a text of several lines visible; newlines and tabs stay, and a carriage
// return before a newline goes.
func Text(s string) string {
	if plain(s, "\n\t") {
		return s
	}
	var b strings.Builder
	convert(&b, s, "\n\t")
	return b.String()
}

// Line makes a text visible that is to stay on one line.
func Line(s string) string {
	if plain(s, "") {
		return s
	}
	var b strings.Builder
	convert(&b, s, "")
	return b.String()
}

// harmless tells whether a character is shown as it is. What is not printed at all can
// still change what is: so are the controls of bidirectional writing.
func harmless(r rune, stays string) bool {
	return unicode.IsGraphic(r) && r != utf8.RuneError || strings.ContainsRune(stays, r)
}

func plain(s, stays string) bool {
	for _, r := range s {
		if !harmless(r, stays) {
			return false
		}
	}
	return true
}

func convert(b *strings.Builder, s, stays string) {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case harmless(r, stays), r == utf8.RuneError && n > 1:
			b.WriteString(s[:n])
		case r == '\r' && stays != "" && strings.HasPrefix(s, "\r\n"):
		case r == utf8.RuneError:
			fmt.Fprintf(b, `\x%02x`, s[0])
		case r < 0x20:
			b.WriteString("^" + string('@'+r))
		case r == 0x7f:
			b.WriteString("^?")
		case r < 0x100:
			fmt.Fprintf(b, `\x%02x`, r)
		default:
			fmt.Fprintf(b, `\u%04x`, r)
		}
		s = s[n:]
	}
}

// JSON makes a text in JSON visible to a terminal. It means the same to programs: what is not a character of
// ASCII is in its strings only (RFC 8259).
func JSON(text []byte) []byte {
	if plain(string(text), "\n\t\r") {
		return text
	}
	var b bytes.Buffer
	for _, r := range string(text) {
		switch {
		case harmless(r, "\n\t\r\ufffd"):
			b.WriteRune(r)
		default:
			for _, unit := range utf16.AppendRune(nil, r) {
				fmt.Fprintf(&b, `\u%04x`, unit)
			}
		}
	}
	return b.Bytes()
}

// Writer makes what is written to it visible, as Text does. It is for one goroutine.
type Writer struct {
	to   io.Writer
	rest string // the beginning of a character, or a carriage return
}

// NewWriter returns a Writer to another one.
func NewWriter(to io.Writer) *Writer { return &Writer{to: to} }

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	s := w.rest + string(p)
	end := len(s)
	for i := 1; i < utf8.UTFMax && i <= len(s); i++ {
		if c := s[len(s)-i:]; utf8.RuneStart(c[0]) {
			if c == "\r" || !utf8.FullRuneInString(c) {
				end -= i
			}
			break
		}
	}
	w.rest = s[end:]
	if _, err := io.WriteString(w.to, Text(s[:end])); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what was kept for what might have followed.
func (w *Writer) Flush() error {
	_, err := io.WriteString(w.to, Text(w.rest))
	w.rest = ""
	return err
}
