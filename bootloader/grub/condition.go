package grub

import (
	"cmp"
	"strconv"
	"strings"
)

// test evaluates what [ has between its brackets: terms with !, -a, -o and parentheses.
func (m *machine) test(args []string) bool {
	t := &tester{m: m, args: args}
	ok := t.or()
	return ok && t.at == len(args)
}

// tester reads a condition.
type tester struct {
	m     *machine
	args  []string
	at    int
	depth int
}

// peek returns the argument after n others, "" behind the last.
func (t *tester) peek(n int) string {
	if t.at+n < len(t.args) {
		return t.args[t.at+n]
	}
	return ""
}

func (t *tester) or() bool {
	ok := t.and()
	for t.peek(0) == "-o" {
		t.at++
		other := t.and()
		ok = ok || other
	}
	return ok
}

func (t *tester) and() bool {
	ok := t.term()
	for t.peek(0) == "-a" {
		t.at++
		other := t.term()
		ok = ok && other
	}
	return ok
}

// term evaluates one comparison.
func (t *tester) term() bool {
	if t.depth++; t.depth > maxNesting {
		return false
	}
	defer func() { t.depth-- }()
	left := len(t.args) - t.at
	if left >= 3 {
		if compare, ok := comparisons[t.peek(1)]; ok {
			a, b := t.peek(0), t.peek(2)
			t.at += 3
			return compare(a, b)
		}
	}
	if left >= 2 {
		if ok, known := t.m.property(t.peek(0), t.peek(1)); known {
			t.at += 2
			return ok
		}
	}
	switch {
	case left == 0:
		return false
	case t.peek(0) == "!" && left > 1:
		t.at++
		return !t.term()
	case t.peek(0) == "(" && left > 1:
		t.at++
		ok := t.or()
		if t.peek(0) != ")" {
			t.at = len(t.args) + 1 // which fails it
			return false
		}
		t.at++
		return ok
	}
	text := t.peek(0)
	t.at++
	return text != ""
}

// property reports what an operator with one operand says, and whether it is one.
func (m *machine) property(operator, operand string) (ok, known bool) {
	switch operator {
	case "-n":
		return operand != "", true
	case "-z":
		return operand == "", true
	case "-e", "-f", "-d", "-s":
		st := m.stat(operand)
		return st != nil && (operator == "-e" || operator == "-d" && st.IsDir() || operator == "-f" && !st.IsDir() || operator == "-s" && st.Size() > 0), true
	}
	return false, false
}

// comparisons are the operators between two operands.
var comparisons = map[string]func(a, b string) bool{
	"=":  func(a, b string) bool { return a == b },
	"==": func(a, b string) bool { return a == b },
	"!=": func(a, b string) bool { return a != b },
	"<":  func(a, b string) bool { return a < b },
	"<=": func(a, b string) bool { return a <= b },
	">":  func(a, b string) bool { return a > b },
	">=": func(a, b string) bool { return a >= b },

	"-eq": func(a, b string) bool { return compareNumbers(a, b) == 0 },
	"-ne": func(a, b string) bool { return compareNumbers(a, b) != 0 },
	"-lt": func(a, b string) bool { return compareNumbers(a, b) < 0 },
	"-le": func(a, b string) bool { return compareNumbers(a, b) <= 0 },
	"-gt": func(a, b string) bool { return compareNumbers(a, b) > 0 },
	"-ge": func(a, b string) bool { return compareNumbers(a, b) >= 0 },
	// With prefixes: what is no digit before the number does not count.
	"-pgt": func(a, b string) bool { return compareNumbers(withoutPrefix(a, b)) > 0 },
	"-plt": func(a, b string) bool { return compareNumbers(withoutPrefix(a, b)) < 0 },
}

// compareNumbers compares as GRUB reads numbers: what is none counts as 0.
func compareNumbers(a, b string) int {
	x, _ := strconv.ParseInt(a, 0, 64)
	y, _ := strconv.ParseInt(b, 0, 64)
	return cmp.Compare(x, y)
}

// withoutPrefix takes away what both begin with.
func withoutPrefix(a, b string) (string, string) {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] && !isDigit(a[n]) {
		n++
	}
	return strings.TrimSpace(a[n:]), strings.TrimSpace(b[n:])
}
