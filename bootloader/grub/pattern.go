package grub

import (
	"errors"
	"regexp"
	"regexp/syntax"
)

// maxPattern bounds a regular expression, all its repetitions written out, and what it is
// compared with, in bytes.
const maxPattern = 1024

var errPattern = errors.New("the regular expression is too large")

// pattern compiles a regular expression; size is what maxPattern bounds. Ten characters
// can repeat what they repeat until it takes a second and a gigabyte to compile.
func pattern(text string) (re *regexp.Regexp, size int, err error) {
	if len(text) > maxPattern {
		return nil, 0, errPattern
	}
	tree, err := syntax.Parse(text, syntax.POSIX)
	if err != nil {
		return nil, 0, err
	}
	if size = patternSize(tree); size > maxPattern {
		return nil, 0, errPattern
	}
	re, err = regexp.CompilePOSIX(text)
	return re, size, err
}

// patternSize is about how many instructions a regular expression becomes, at most one
// more than maxPattern.
func patternSize(tree *syntax.Regexp) int {
	size := 0
	for _, sub := range tree.Sub {
		size += patternSize(sub)
	}
	if tree.Op == syntax.OpRepeat {
		size *= max(1, tree.Min, tree.Max)
	}
	return min(size+1+len(tree.Rune), maxPattern+1)
}
