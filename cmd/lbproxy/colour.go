// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// colours are SGR parameters by the word that begins a cell of a table.
var colours = map[string]string{
	strings.ToUpper(levelFail): "31", strings.ToUpper(levelWarn): "33", strings.ToUpper(levelOK): "32",
	"ejected": "31", "suspect": "33", "healthy": "32",
}

// cell finds the words of colours where a cell begins.
var cell = regexp.MustCompile(`(?m)(^| {2,})(FAIL|WARN|OK|ejected|suspect|healthy)([ ,:]|$)`)

// coloured returns what writes text in colours to a.stdout, if a person reads it there, or
// a.stdout. Lines must be written as a whole.
func (a *app) coloured() io.Writer {
	if !a.terminal(a.stdout) || a.variable("NO_COLOR") != "" || a.variable("TERM") == "dumb" {
		return a.stdout
	}
	return painter{a.stdout}
}

// painter paints the cells of tables.
type painter struct{ to io.Writer }

// Write writes whole lines.
func (p painter) Write(text []byte) (int, error) {
	painted := cell.ReplaceAllFunc(text, func(found []byte) []byte {
		part := cell.FindSubmatch(found)
		return []byte(string(part[1]) + "\x1b[" + colours[string(part[2])] + "m" + string(part[2]) + "\x1b[0m" + string(part[3]))
	})
	if _, err := p.to.Write(painted); err != nil {
		return 0, err
	}
	return len(text), nil
}

// variable returns a variable of the environment.
func (a *app) variable(name string) string {
	for _, kv := range a.environ {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// isTerminal tells whether a person reads what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
