package ktap

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/*.golden anew")

// golden is a report as the golden files have it.
func golden(r *Report) string {
	var b strings.Builder
	for _, c := range r.Cases {
		fmt.Fprintf(&b, "%s %s\n", c.Result, c.Name)
		if c.Detail != "" {
			fmt.Fprintf(&b, "    %s\n", strings.ReplaceAll(c.Detail, "\n", "\n    "))
		}
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "problem: %s\n", p)
	}
	return b.String()
}

// TestGolden reads outputs in the shapes that there are.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.ktap")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, path := golden(Parse(string(text))), strings.TrimSuffix(file, ".ktap")+".golden"
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || got != string(want) {
			t.Errorf("%s: %v\n--- got\n%s--- want\n%s", file, err, got, want)
		}
	}
}
