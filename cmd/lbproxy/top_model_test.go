// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/server"
)

// TestTopAlarms: a Service alarms that has backends out or none at all, and a backend that
// is out or suspect; an approximation is marked.
func TestTopAlarms(t *testing.T) {
	backend := func(address string, suspect bool, state string) liveBackend {
		b := liveBackend{}
		b.Address, b.Suspect = address, suspect
		if state != "" {
			b.Health = &server.Verdict{State: state}
		}
		return b
	}
	m := &topModel{every: true, live: live{Services: []liveService{
		{Name: "a", Algorithm: "hash", Backends: []liveBackend{backend("a-well", false, "healthy"), backend("a-unknown", false, "")}},
		{Name: "b", Algorithm: "least-time", Approximation: "it is", Out: 1, Backends: []liveBackend{backend("b-out", false, stateOut), backend("b-suspect", true, "")}},
		{Name: "c", Algorithm: "hash"},
	}}}
	want := map[string]bool{"a": false, "a-well": false, "a-unknown": false, "b": true, "b-out": true, "b-suspect": true, "c": true}
	for _, r := range m.table()[1:] {
		name := strings.Fields(r.text)[0]
		if alarm, known := want[name]; !known || r.alarm != alarm {
			t.Errorf("%s alarms: %t, want %t", name, r.alarm, alarm)
		}
		if marked := strings.Contains(r.text, "~least-time"); marked != (name == "b") {
			t.Errorf("%q: an approximation is marked: %t", r.text, marked)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("not shown: %v", want)
	}
}

// TestTopPages: a page further, the last line that was seen is the first.
func TestTopPages(t *testing.T) {
	m := &topModel{}
	for i := range 100 {
		m.live.Services = append(m.live.Services, liveService{Name: fmt.Sprintf("s%02d", i)})
	}
	m.screen(80, 13) // three lines of head
	for _, step := range []struct{ key, selected string }{{keyPageDown, "s09"}, {keyPageDown, "s18"}, {keyPageUp, "s09"}} {
		if m.key(step.key); m.selected != step.selected {
			t.Errorf("%q selects %s, want %s", step.key, m.selected, step.selected)
		}
		m.screen(80, 13)
	}
}

// TestKeysOfNobody: when nobody sits at the terminal any more, top ends.
func TestKeysOfNobody(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out.Close()
	keys, err := (&terminal{in: in}).keys(time.Minute)
	if err != nil || len(keys) != 1 || !(&topModel{}).key(keys[0]) {
		t.Errorf("keys %q, error %v, want one that ends", keys, err)
	}
}

// TestDrawOnce: what is shown already is not written again.
func TestDrawOnce(t *testing.T) {
	keyboard, tty := openPTY(t)
	screen := &terminal{in: tty, out: tty}
	for _, open := range []uint64{1, 1, 2} {
		if err := screen.draw(&topModel{live: live{Live: open}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := keyboard.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	seen, buf := "", make([]byte, 4096)
	for !strings.Contains(seen, "2 open") {
		n, err := keyboard.Read(buf)
		if err != nil {
			t.Fatalf("%v: %q", err, seen)
		}
		seen += string(buf[:n])
	}
	if n := strings.Count(seen, "1 open"); n != 1 {
		t.Errorf("the same was drawn %d times: %q", n, seen)
	}
}

// TestWebDataIsShared: who asks again within a second gets the same, and the node is not
// looked at.
func TestWebDataIsShared(t *testing.T) {
	a, _, _ := fakeApp(exampleKernel())
	looks, now := 0, exampleTime
	a.now = func() time.Time { return now }
	a.kernel.ebpf.view = func(config.Config) (view, error) { looks++; return exampleView(), nil }
	n := &node{cfg: config.Default(), verdicts: func() []health.Verdict { return nil }, monitor: &health.Monitor{}}
	data := a.webData(n)
	for i, pass := range []time.Duration{0, webEvery - 1, 1, webEvery} {
		now = now.Add(pass)
		if _, err := data(context.Background()); err != nil {
			t.Fatal(err)
		}
		if want := []int{1, 1, 2, 3}[i]; looks != want {
			t.Errorf("asked %d times: %d looks, want %d", i+1, looks, want)
		}
	}
}
