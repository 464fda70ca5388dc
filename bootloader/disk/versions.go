package disk

import "strings"

// compareVersions orders versions as the UAPI Group's Version Format Specification
// does: ~ stands below the end, then come -, ^ and ., digits and letters; runs of digits
// count by their value.
func compareVersions(a, b string) int {
	for {
		a, b = strings.TrimLeftFunc(a, notVersion), strings.TrimLeftFunc(b, notVersion)
		if before, after := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~"); before || after {
			if before != after {
				return order(after)
			}
			a, b = a[1:], b[1:]
			continue
		}
		if a == "" || b == "" {
			return len(a) - len(b)
		}
		if a[0] == b[0] && strings.IndexByte("-^.", a[0]) >= 0 {
			a, b = a[1:], b[1:]
			continue
		}
		for _, c := range []byte("-^.") {
			if a[0] == c || b[0] == c {
				return order(b[0] == c)
			}
		}
		within := isLetter
		if isDigit(a[0]) || isDigit(b[0]) {
			within = isDigit
		}
		var x, y string
		x, a = cutRun(a, within)
		y, b = cutRun(b, within)
		if isDigit(firstByte(x)) || isDigit(firstByte(y)) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
}

// order is 1 where the first of two is the greater one, else -1.
func order(greater bool) int {
	if greater {
		return 1
	}
	return -1
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func notVersion(c rune) bool {
	return c > 127 || !isDigit(byte(c)) && !isLetter(byte(c)) && !strings.ContainsRune("~-^.", c)
}

func firstByte(s string) byte {
	if s == "" {
		return 0
	}
	return s[0]
}

// cutRun cuts the bytes of a kind off the front.
func cutRun(s string, within func(byte) bool) (run, rest string) {
	n := 0
	for n < len(s) && within(s[n]) {
		n++
	}
	return s[:n], s[n:]
}
