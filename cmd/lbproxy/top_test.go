// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// busyKernel is a node whose Services get connections between two looks, which are a second
// apart: the first Service's backends n, n+1 ... more.
func busyKernel(a *app, n uint64) {
	looks := 0
	start := exampleTime
	a.now = func() time.Time { return start.Add(time.Duration(looks) * time.Second) }
	a.kernel.ebpf.view = func(config.Config) (view, error) {
		v := exampleView()
		looks++
		for i := range v.services[0].Backends {
			v.services[0].Backends[i].Opened += (n + uint64(i)) * uint64(looks)
		}
		return v, nil
	}
}

func TestTopOnce(t *testing.T) {
	a, stdout, stderr := fakeApp(exampleKernel())
	busyKernel(a, 3)
	if code := a.execute([]string{"top", "--interval=200ms"}); code != exitOK || stderr.Len() > 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	golden(t, "top.txt", stdout.String())
	stdout.Reset()
	if code := a.execute([]string{"top", "--interval=200ms", "-n", "shop", "-o", "json"}); code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	golden(t, "top.json", stdout.String())
	for _, args := range [][]string{{"top", "--interval=1ms"}, {"top", "x"}} {
		a, _, _ := fakeApp(exampleKernel())
		if code := a.execute(args); code != exitUsage {
			t.Errorf("%q: exit code %d, want %d", args, code, exitUsage)
		}
	}
}

// TestHistory: rates are of the last interval, shares of the last minute, and nothing is
// made up where counters are not known.
func TestHistory(t *testing.T) {
	var h history
	look := func(second int, kind string, counters ...uint64) liveService {
		t.Helper()
		v := dataplane.ServiceView{Name: "shop/web/TCP/IPv4", Kind: kind}
		for i, n := range counters {
			v.Backends = append(v.Backends, dataplane.BackendView{Address: fmt.Sprintf("10.0.0.%d:80", i+1), Opened: n})
		}
		svcs, err := selectServices([]dataplane.ServiceView{v}, "")
		if err != nil {
			t.Fatal(err)
		}
		return h.add(census{at: exampleTime.Add(time.Duration(second) * time.Second), services: svcs}, nil).Services[0]
	}
	show := func(s liveService) string {
		text := rate(s.Rate) + ":"
		for _, b := range s.Backends {
			part := "-"
			if b.Recent != nil {
				part = percent(*b.Recent)
			}
			text += fmt.Sprintf(" %s %s", rate(b.Rate), part)
		}
		return text
	}
	for _, step := range []struct {
		second   int
		kind     string
		counters []uint64
		want     string
	}{
		{0, "seq", []uint64{100, 50}, "-: - - - -"},
		{2, "seq", []uint64{106, 52}, "4.0: 3.0 75.0% 1.0 25.0%"},
		{4, "seq", []uint64{106, 52}, "0.0: 0.0 75.0% 0.0 25.0%"},
		{6, "seq", []uint64{108, 52, 8}, "5.0: 1.0 44.4% 0.0 11.1% 4.0 44.4%"}, // a new one
		{8, "seq", []uint64{2, 54, 8}, "-: - - 1.0 - 0.0 -"},                   // one was removed and added
		{61, "seq", []uint64{2, 54, 8}, "0.0: 0.0 - 0.0 - 0.0 -"},
		{130, "seq", []uint64{4, 54, 8}, "0.0: 0.0 100.0% 0.0 0.0% 0.0 0.0%"}, // what was before is forgotten
		{131, kindRules, []uint64{0, 0}, "-: - - - -"},
		{132, kindRules, []uint64{0, 0}, "-: - - - -"},
	} {
		if got := show(look(step.second, step.kind, step.counters...)); got != step.want {
			t.Errorf("after %d s: %q, want %q", step.second, got, step.want)
		}
	}
}

// exampleLive is the example as top has it, after a second.
func exampleLive(t *testing.T) live {
	t.Helper()
	a, _, _ := fakeApp(exampleKernel())
	busyKernel(a, 3)
	var h history
	for range 2 {
		c, err := a.takeCensus(t.Context(), config.Default(), "", io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		h.add(c, nil)
	}
	c, err := a.takeCensus(t.Context(), config.Default(), "", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return h.add(c, []string{"a note"})
}

func TestTopKeys(t *testing.T) {
	m := &topModel{live: exampleLive(t)}
	const web, dns, single = "shop/web:http/TCP/IPv4", "kube-system/kube-dns:dns/UDP/IPv6", "default/single/TCP/IPv4"
	shown := func() (services, backends int) {
		for _, r := range m.screen(80, 24) {
			switch {
			case strings.HasPrefix(r.text, "  "):
				backends++
			case r.service != "":
				services++
			}
		}
		return services, backends
	}
	if s, b := shown(); s != 3 || b != 0 || m.selected != web {
		t.Errorf("at first: %d Services, %d backends, selected %q; want 3, 0, %q", s, b, m.selected, web)
	}
	for _, step := range []struct {
		key, selected string
		backends      int
		first         string
	}{
		{keyRight, web, 3, web}, {keyRight, web, 3, web}, {"\r", web, 0, web}, {"\r", web, 3, web}, {keyLeft, web, 0, web},
		{keyDown, single, 0, web}, {keyDown, dns, 0, web}, {keyDown, dns, 0, web}, {keyUp, single, 0, web},
		{"a", single, 4, web}, {keyLeft, single, 3, web}, {"a", single, 0, web},
		{"s", single, 0, web}, {"s", single, 0, web}, {"s", single, 0, single}, {"s", single, 0, single}, {"s", single, 0, web},
		{keyPageUp, web, 0, web}, {keyPageDown, dns, 0, web}, {"x", dns, 0, web},
	} {
		if m.key(step.key) {
			t.Fatalf("%q ends", step.key)
		}
		_, b := shown()
		if m.selected != step.selected || b != step.backends || m.order()[0] != step.first {
			t.Errorf("%q: selected %q, %d backends, first %q; want %q, %d, %q", step.key, m.selected, b, m.order()[0], step.selected, step.backends, step.first)
		}
	}
	if !m.key("q") || !m.key("\x03") {
		t.Error("q and control-C do not end")
	}
}

// TestTopFits: what is seen fits into any terminal, and the selected Service is seen.
func TestTopFits(t *testing.T) {
	for _, height := range []int{1, 4, 5, 6, 24} {
		m := &topModel{live: exampleLive(t), every: true}
		for range 4 {
			rows := m.screen(30, height)
			if len(rows) > height {
				t.Fatalf("height %d: %d rows", height, len(rows))
			}
			seen := slices.ContainsFunc(rows, func(r topRow) bool { return r.service == m.selected })
			if height > 4 && !seen {
				t.Errorf("height %d: %s is not seen", height, m.selected)
			}
			for _, r := range rows {
				if len(r.text) > 30 {
					t.Errorf("%q is longer than 30", r.text)
				}
			}
			m.key(keyDown)
		}
	}
}

// TestTopAtATerminal sits at a pseudo-terminal, presses keys, and leaves.
func TestTopAtATerminal(t *testing.T) {
	keyboard, tty := openPTY(t)
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	a, _, _ := fakeApp(exampleKernel())
	busyKernel(a, 3)
	var seen bytes.Buffer
	await := func(text string) {
		t.Helper()
		buf := make([]byte, 4096)
		if err := keyboard.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
			t.Fatal(err)
		}
		for !strings.Contains(seen.String(), text) {
			n, err := keyboard.Read(buf)
			if err != nil {
				t.Fatalf("%q is not shown: %v\n%q", text, err, seen.String())
			}
			seen.Write(buf[:n])
		}
		seen.Reset()
	}
	press := func(keys string) {
		t.Helper()
		if _, err := keyboard.WriteString(keys); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	screen := &terminal{in: tty, out: tty}
	go func() {
		done <- screen.top(t.Context(), func(ctx context.Context) (census, []string, error) {
			c, err := a.takeCensus(ctx, config.Default(), "", io.Discard)
			return c, nil, err
		}, time.Hour)
	}()
	await("shop/web:http/TCP/IPv4")
	await("15.0 connections/s") // a second later: 3, 4, 5 and 3 more
	press("a")
	await("10.244.1.10:8080")
	press("s")
	await("sorted by live")
	press("q")
	if err := <-done; err != nil {
		t.Error(err)
	}
	await("\x1b[?1049l")
	after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal is left as %+v, %v; was %+v", after, err, before)
	}
}

// openPTY returns both ends of a terminal of 100 columns and 30 rows.
func openPTY(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	keyboard = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { keyboard.Close() })
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 100}); err != nil {
		t.Fatal(err)
	}
	return keyboard, tty
}

func TestSplitKeys(t *testing.T) {
	got := splitKeys("a" + keyUp + "q" + keyPageDown + "\x1b")
	if want := []string{"a", keyUp, "q", keyPageDown, "\x1b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLiveIsForPrograms: nothing is null that is a list.
func TestLiveIsForPrograms(t *testing.T) {
	var h history
	text, err := json.Marshal(h.add(census{}, nil))
	if err != nil || strings.Contains(string(text), `"services":null`) || strings.Contains(string(text), `"notes":null`) {
		t.Errorf("%s, %v", text, err)
	}
}
