// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLoad: a client says when all its connections are held, and notices a server that
// refuses new ones.
func TestLoad(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = serveTCP(listener) }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, in := io.Pipe()
	target := "tcp://" + listener.Addr().String()
	l := load{name: "test", held: 2, every: time.Millisecond, between: time.Millisecond}
	go func() { _ = in.CloseWithError(l.run(ctx, []string{target}, in)) }()

	var seen, last line
	for lines := json.NewDecoder(out); ; {
		var now line
		if err := lines.Decode(&now); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch {
		case now.Counts != nil:
			last = now
			if now.Steady {
				_ = listener.Close() // held connections go on
			}
		case seen.Kind == "":
			seen = now
			cancel()
		}
	}
	if seen.Kind != "failed" || seen.Target != target || seen.Error == "" {
		t.Errorf("without a listener the client wrote %+v, want a failed connection to %s, and why", seen, target)
	}
	c := last.Counts[target]
	if c.Exchanges == 0 || c.Opened == 0 || c.Failed == 0 || c.Broken != 0 {
		t.Errorf("counts are %+v, want exchanges, opened and failed connections, and none broken", c)
	}
}

// TestSum: what broke is in the table, with the event before it, and is an error; a client
// that never held what it should is one, too, and so is a log that has lost lines.
func TestSum(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	events := write("events", "2026-01-01T00:00:01Z first\n2026-01-01T00:00:02.5Z second\n")
	counts := func(steady string, broken string) string {
		return `{"time":"2026-01-01T00:00:04Z","client":"pod","steady":` + steady +
			`,"counts":{"tcp://10.96.0.1:80":{"exchanges":7,"broken":` + broken + `,"opened":3,"failed":0,"longestMS":1.5}}}` + "\n"
	}
	good := write("good", `{"time":"2026-01-01T00:00:00Z","client":"pod","target":"tcp://10.96.0.1:80","kind":"failed","error":"early"}`+
		"\n"+counts("true", "0"))
	broken := write("broken", `{"time":"2026-01-01T00:00:03Z","client":"pod","target":"tcp://10.96.0.1:80","kind":"broken","error":"reset","local":"10.0.0.1:5"}`+
		"\n"+counts("true", "1"))
	lost := write("lost", counts("true", "1"))
	never := write("never", counts("false", "0"))

	var out strings.Builder
	if err := sum(&out, events, []string{good}); err != nil {
		t.Error(err)
	}
	if err := sum(&out, events, []string{good, broken}); err == nil {
		t.Error("a broken connection is no error")
	}
	if want := "broken from 10.0.0.1:5: reset; 0.5 s after: second"; !strings.Contains(out.String(), want) {
		t.Errorf("no %q in\n%s", want, out.String())
	}
	if err := sum(&out, events, []string{lost}); err == nil {
		t.Error("a failure that was counted and not written is no error")
	}
	if err := sum(&out, events, []string{never}); err == nil {
		t.Error("a client that held nothing is no error")
	}
}
