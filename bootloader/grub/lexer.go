package grub

import (
	"fmt"
	"strings"
)

// A word is what a command gets as one argument, or several after the expansion.
type word []piece

// A piece is text, or a variable's name.
type piece struct {
	text     string
	variable bool
	quoted   bool // neither split at spaces nor a keyword
}

// literal is the text of a word without variables and quotes, such as a keyword.
func (w word) literal() string {
	if len(w) == 1 && !w[0].variable && !w[0].quoted {
		return w[0].text
	}
	return ""
}

// The kinds of a token.
type kind int

const (
	tokenEnd   kind = iota // of the script
	tokenLine              // the end of a command: a new line or ;
	tokenOpen              // {
	tokenClose             // }
	tokenWord
	tokenFault
	tokenOther // what a script has no use for
)

type token struct {
	kind  kind
	word  word
	line  int
	fault error
}

// fault is an error of a script's syntax.
type fault struct {
	line int
	what string
}

// Error implements error.
func (f fault) Error() string { return fmt.Sprintf("line %d: %s", f.line, f.what) }

// lexer cuts a script into tokens.
type lexer struct {
	s    string
	at   int
	line int
}

func (l *lexer) peek() byte {
	if l.at < len(l.s) {
		return l.s[l.at]
	}
	return 0
}

// take returns the next byte.
func (l *lexer) take() byte {
	c := l.s[l.at]
	l.at++
	if c == '\n' {
		l.line++
	}
	return c
}

// skipLine goes to the end of the line.
func (l *lexer) skipLine() {
	if i := strings.IndexByte(l.s[l.at:], '\n'); i >= 0 {
		l.at += i
	} else {
		l.at = len(l.s)
	}
}

// next returns the next token.
func (l *lexer) next() token {
	for l.at < len(l.s) {
		switch c := l.peek(); {
		case c == ' ' || c == '\t' || c == '\r':
			l.take()
		case strings.HasPrefix(l.s[l.at:], "\\\n"), strings.HasPrefix(l.s[l.at:], "\\\r\n"):
			l.at = l.at + strings.IndexByte(l.s[l.at:], '\n') + 1
			l.line++
		case c == '#':
			l.skipLine()
		default:
			line := l.line
			for i, mark := range "\n;{}|&<>" {
				if c == byte(mark) {
					l.take()
					return token{kind: [...]kind{tokenLine, tokenLine, tokenOpen, tokenClose, tokenOther, tokenOther, tokenOther, tokenOther}[i], line: line}
				}
			}
			w, err := l.word()
			if err != nil {
				return token{kind: tokenFault, line: line, fault: err}
			}
			return token{kind: tokenWord, word: w, line: line}
		}
	}
	return token{kind: tokenEnd, line: l.line}
}

// word reads a word, which has at least one byte here.
func (l *lexer) word() (w word, err error) {
	var text strings.Builder
	flush := func(quoted bool) {
		if text.Len() > 0 || quoted {
			w = append(w, piece{text: text.String(), quoted: quoted})
			text.Reset()
		}
	}
	for l.at < len(l.s) && !strings.ContainsRune(" \t\r\n;{}|&<>", rune(l.peek())) {
		switch c := l.take(); c {
		case '\\':
			if l.peek() == '\r' {
				l.take()
			}
			if l.at == len(l.s) || l.peek() == '\n' {
				if l.at < len(l.s) {
					l.take()
				}
				continue
			}
			flush(false)
			text.WriteByte(l.take())
			flush(true)
		case '\'':
			flush(false)
			start := l.line
			end := strings.IndexByte(l.s[l.at:], '\'')
			if end < 0 {
				l.at = len(l.s)
				return nil, fault{start, "' without its end"}
			}
			text.WriteString(l.s[l.at : l.at+end])
			l.line += strings.Count(l.s[l.at:l.at+end], "\n")
			l.at += end + 1
			flush(true)
		case '"':
			flush(false)
			if w, err = l.double(w); err != nil {
				return nil, err
			}
		case '$':
			if l.peek() == '"' { // a text that GRUB translates
				continue
			}
			name, err := l.variable()
			if err != nil {
				return nil, err
			}
			if name == "" {
				text.WriteByte('$')
				continue
			}
			flush(false)
			w = append(w, piece{text: name, variable: true})
		default:
			text.WriteByte(c)
		}
	}
	flush(false)
	return w, nil
}

// double reads what is between double quotes, and the quote at the end.
func (l *lexer) double(w word) (word, error) {
	start := l.line
	var text strings.Builder
	empty := true
	flush := func() {
		if text.Len() > 0 {
			w = append(w, piece{text: text.String(), quoted: true})
			text.Reset()
			empty = false
		}
	}
	for l.at < len(l.s) {
		switch c := l.take(); {
		case c == '"':
			flush()
			if empty {
				w = append(w, piece{quoted: true})
			}
			return w, nil
		case c == '\\' && l.at < len(l.s) && strings.ContainsRune("\\\"$\n", rune(l.peek())):
			if c := l.take(); c != '\n' {
				text.WriteByte(c)
			}
		case c == '$':
			name, err := l.variable()
			if err != nil {
				return nil, err
			}
			if name == "" {
				text.WriteByte('$')
				continue
			}
			flush()
			w = append(w, piece{text: name, variable: true, quoted: true})
			empty = false
		default:
			text.WriteByte(c)
		}
	}
	return nil, fault{start, "\" without its end"}
}

func isName(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || isDigit(c)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// variable reads a variable's name behind $; it is empty where none is meant.
func (l *lexer) variable() (string, error) {
	if l.peek() == '{' {
		end := strings.IndexByte(l.s[l.at:], '}')
		if end < 0 || strings.ContainsAny(l.s[l.at:l.at+end], "\n$\"' ") {
			return "", fault{l.line, "${ without its end"}
		}
		name := l.s[l.at+1 : l.at+end]
		l.at += end + 1
		return name, nil
	}
	if c := l.peek(); c != 0 && strings.ContainsRune("?#*@", rune(c)) {
		l.take()
		return string(c), nil
	}
	start := l.at
	for l.at < len(l.s) && isName(l.s[l.at]) {
		l.at++
		if isDigit(l.s[start]) && (l.at == len(l.s) || !isDigit(l.s[l.at])) {
			break // $1 and $12 are arguments
		}
	}
	return l.s[start:l.at], nil
}
