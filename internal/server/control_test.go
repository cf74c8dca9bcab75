// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// startControl serves verdicts in dir and returns how to stop it.
func startControl(t *testing.T, dir string, verdicts func() []Verdict) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := listenControl(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&Control{Verdicts: verdicts, Log: slog.New(slog.DiscardHandler)}).serve(ctx, ln)
	}()
	return func() {
		cancel()
		<-done
	}
}

func TestControlTellsVerdicts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state") // made
	until := time.Date(2026, 3, 1, 12, 0, 8, 0, time.UTC)
	want := []Verdict{
		{Service: "shop/web:http/TCP/IPv4", Backend: "10.244.1.9:8080", State: "healthy", Probe: "http", Since: until.Add(-time.Hour)},
		{Service: "shop/web:http/TCP/IPv4", Backend: "[fd00::1]:8080", State: "ejected", Probe: "tcp", Since: until, Reason: "connection refused",
			Ignored: "too few are left", Ejections: 3, Until: &until},
	}
	stop := startControl(t, dir, func() []Verdict { return want })
	got, err := AskHealth(t.Context(), dir)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	info, err := os.Lstat(ControlPath(dir))
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v, want a socket for its owner", info.Mode(), err)
	}
	stop()
	if _, err := AskHealth(t.Context(), dir); !errors.Is(err, ErrNoAgent) {
		t.Errorf("after the end: %v, want %v", err, ErrNoAgent)
	}
	if _, err := os.Lstat(ControlPath(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestControlWithoutVerdicts(t *testing.T) {
	dir := t.TempDir()
	defer startControl(t, dir, func() []Verdict { return nil })()
	if got, err := AskHealth(t.Context(), dir); err != nil || got == nil || len(got) != 0 {
		t.Errorf("got %v, %v, want an empty list", got, err)
	}
}

// TestControlTellsWhoRests, unless it is an agent that cannot tell.
func TestControlTellsWhoRests(t *testing.T) {
	want := []Resting{{"shop/web:http/TCP/IPv4", "10.244.1.9:8080", "both"}}
	for _, c := range []*Control{{Resting: func() []Resting { return want }}, {}} {
		dir := t.TempDir()
		ln, err := listenControl(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		c.Verdicts, c.Log = func() []Verdict { return nil }, slog.New(slog.DiscardHandler)
		go c.serve(t.Context(), ln)
		got, err := AskResting(t.Context(), dir)
		if c.Resting == nil && err == nil || c.Resting != nil && (err != nil || !reflect.DeepEqual(got, want)) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

// TestControlReplacesASocketThatIsLeft, as a killed agent leaves it, and with any umask.
func TestControlReplacesASocketThatIsLeft(t *testing.T) {
	dir := t.TempDir()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: ControlPath(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if _, err := AskHealth(t.Context(), dir); !errors.Is(err, ErrNoAgent) {
		t.Errorf("got %v, want %v", err, ErrNoAgent)
	}
	defer startControl(t, dir, func() []Verdict { return nil })()
	if info, err := os.Lstat(ControlPath(dir)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestControlThatCannotBe costs a line in the log, not the agent.
func TestControlThatCannotBe(t *testing.T) {
	shared := t.TempDir()
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	file := t.TempDir()
	if err := os.WriteFile(ControlPath(file), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		shared:                           "others may write to it",
		file:                             "is no socket: it is left alone",
		filepath.Join(file, controlName): "not a directory",
		filepath.Join(t.TempDir(), strings.Repeat("x", 100)): "has at most 107 bytes",
	} {
		var log strings.Builder
		c := &Control{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // if it can be
		defer cancel()
		if err := c.Run(ctx); err != nil || !strings.Contains(log.String(), want) {
			t.Errorf("%s: %v, log %q lacks %q", dir, err, log.String(), want)
		}
	}
	if text, _ := os.ReadFile(ControlPath(file)); string(text) != "precious" {
		t.Errorf("the file has %q", text)
	}
}

// TestSilentClients hold nobody up.
func TestSilentClients(t *testing.T) {
	dir := t.TempDir()
	defer startControl(t, dir, func() []Verdict { return nil })()
	for range controlConns - 1 {
		conn, err := net.Dial("unix", ControlPath(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if _, err := AskHealth(t.Context(), dir); err != nil {
		t.Errorf("beside clients that are silent: %v", err)
	}
}

func TestAskHealthOfSomebodyElse(t *testing.T) {
	for answer, want := range map[string]string{
		"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n": "answers 404",
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes":     "answer of the agent: invalid character",
		"SSH-2.0\r\n": "ask the agent: ",
	} {
		dir := t.TempDir()
		ln, err := net.Listen("unix", ControlPath(dir))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			buf := make([]byte, 4096)
			_, _ = conn.Read(buf)
			fmt.Fprint(conn, answer)
		}()
		if _, err := AskHealth(t.Context(), dir); err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, ErrNoAgent) {
			t.Errorf("%q: %v, want %q", answer, err, want)
		}
		ln.Close()
	}
}
