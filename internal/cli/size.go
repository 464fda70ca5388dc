package cli

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// byteSize is a flag for sizes with the suffixes K, M, G and T.
type byteSize uint64

// String implements pflag.Value.
func (s byteSize) String() string {
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

// Set implements pflag.Value. A number without a suffix is in MiB, as with
// other VMMs.
func (s *byteSize) Set(v string) error { return s.setUnit(v, 20) }

// setUnit is Set where a number without a suffix is in units of 2^unit.
func (s *byteSize) setUnit(v string, unitShift uint) error {
	digits := strings.TrimRight(strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(v), "B"), "I"), "KMGT")
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(v)[len(digits):], "B"), "I")
	shifts := map[string]uint{"": unitShift, "K": 10, "M": 20, "G": 30, "T": 40}
	shift, ok := shifts[unit]
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || !ok || n > math.MaxInt64>>shift {
		return errors.New("a size such as 512M or 4G")
	}
	*s = byteSize(n << shift)
	return nil
}

// Type implements pflag.Value.
func (s *byteSize) Type() string { return "size" }
