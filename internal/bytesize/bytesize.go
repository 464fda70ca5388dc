// Package bytesize reads and writes sizes as people give them, such as 512M.
package bytesize

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes, up to 2^63-1. As text it has one of the suffixes K, M,
// G and T, which are powers of 1024; a text without one is in MiB, as with other
// VMMs. It is a pflag.Value, and is text in JSON and TOML.
type Size uint64

// String is the size with the largest suffix that leaves it whole.
func (s Size) String() string {
	for _, u := range []struct {
		shift uint
		name  string
	}{{40, "T"}, {30, "G"}, {20, "M"}, {10, "K"}} {
		if s > 0 && s%(1<<u.shift) == 0 {
			return fmt.Sprintf("%d%s", s>>u.shift, u.name)
		}
	}
	return strconv.FormatUint(uint64(s), 10)
}

// Set implements pflag.Value.
func (s *Size) Set(v string) (err error) {
	n, err := Parse(v, 1<<20)
	if err == nil {
		*s = n
	}
	return err
}

// Type implements pflag.Value.
func (s *Size) Type() string { return "size" }

// MarshalText implements encoding.TextMarshaler, by String; a size that is not whole
// kibibytes has the suffix B, which UnmarshalText reads as bytes.
func (s Size) MarshalText() ([]byte, error) {
	if text := s.String(); s%1024 == 0 && s > 0 {
		return []byte(text), nil
	}
	return []byte(strconv.FormatUint(uint64(s), 10) + "B"), nil
}

// UnmarshalText implements encoding.TextUnmarshaler, by Set.
func (s *Size) UnmarshalText(b []byte) error { return s.Set(string(b)) }

// Parse reads a size; a number without a suffix counts units of so many bytes. The
// suffixes may be lower case, and be followed by B or iB.
func Parse(v string, unit uint64) (Size, error) {
	suffix := strings.TrimLeft(v, "0123456789")
	if suffix == "B" {
		unit = 1
	}
	units := map[string]uint64{"": unit, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
	by, ok := units[strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(suffix), "B"), "I")]
	n, err := strconv.ParseUint(strings.TrimSuffix(v, suffix), 10, 64)
	if err != nil || !ok || n > math.MaxInt64/by {
		return 0, errors.New("a size such as 512M or 4G")
	}
	return Size(n * by), nil
}
