package cli

import (
	"encoding/json"
	"io"

	"vmm/internal/visible"
)

// printJSON prints what --json does, for people too.
func printJSON(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	return printText(w, text, err)
}

// printJSONLine is printJSON on one line, of which there may be many.
func printJSONLine(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	return printText(w, text, err)
}

// printText prints a text in JSON, some of which can be a guest's.
func printText(w io.Writer, text []byte, err error) error {
	if err != nil {
		return err
	}
	_, err = w.Write(append(visible.JSON(text), '\n'))
	return err
}
