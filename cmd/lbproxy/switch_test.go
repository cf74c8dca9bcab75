// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

func TestSwitchoverWaitsForAFullSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var left atomic.Int32 // the clock of a bubble orders no memory
		other := access{leave: func(context.Context, config.Config, plane, *slog.Logger) error {
			if left.Add(1) < 3 {
				return errors.New("the xtables lock is held")
			}
			return nil
		}}
		s := newSwitchover(config.Config{}, nil, other, slog.New(slog.DiscardHandler))
		done := make(chan error, 1)
		go func() { done <- s.run(t.Context()) }()
		for _, tc := range []struct {
			what string
			d    dataplane.Delta
			err  error
			left int32
		}{
			{"a change", dataplane.Delta{}, nil, 0},
			{"a failure", dataplane.Delta{Full: true}, errors.New("no"), 0},
			{"a failure of all", dataplane.Delta{Full: true}, &dataplane.SyncError{Other: errors.New("no")}, 0},
			{"a failure of one", dataplane.Delta{Full: true}, &dataplane.SyncError{Failed: map[lb.ServiceName]error{{}: errors.New("no")}}, 1},
			{"another one", dataplane.Delta{Full: true}, nil, 1},
		} {
			s.synced(tc.d, tc.err)
			synctest.Wait()
			if n := left.Load(); n != tc.left {
				t.Errorf("%s: left %d times, want %d", tc.what, n, tc.left)
			}
		}
		<-time.After(2*leaveAgain + time.Second)
		synctest.Wait()
		if err := <-done; err != nil || left.Load() != 3 {
			t.Errorf("left %d times, %v; want 3: twice it failed", left.Load(), err)
		}
	})
}

func TestSwitchoverEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := newSwitchover(config.Config{}, nil, access{leave: func(ctx context.Context, _ config.Config, _ plane, _ *slog.Logger) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}}, slog.New(slog.DiscardHandler))
	s.synced(dataplane.Delta{Full: true}, nil)
	if err := s.run(ctx); err != nil {
		t.Error(err)
	}
	if err := newSwitchover(config.Config{}, nil, access{}, nil).run(ctx); err != nil {
		t.Error(err)
	}
}

// TestRunLeavesTheOtherDataplane: once its own serves.
func TestRunLeavesTheOtherDataplane(t *testing.T) {
	for _, name := range []string{config.EBPF, config.IPTables} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(manifest), 0o600); err != nil {
			t.Fatal(err)
		}
		dp := &fakePlane{services: map[string]*dataplane.Service{}}
		left := make(chan string, 2)
		leaves := func(other string) func(context.Context, config.Config, plane, *slog.Logger) error {
			return func(_ context.Context, _ config.Config, serving plane, _ *slog.Logger) error {
				dp.mu.Lock()
				defer dp.mu.Unlock()
				left <- fmt.Sprint(other, " ", serving == plane(dp), " ", len(dp.services))
				return nil
			}
		}
		k := kernel{ebpf: opens(dp), iptables: opens(dp)}
		k.ebpf.leave, k.iptables.leave = leaves(config.EBPF), leaves(config.IPTables)
		proc := startWith(t, k, "--manifests="+dir, "--dataplane="+name)
		other := map[string]string{config.EBPF: config.IPTables, config.IPTables: config.EBPF}[name]
		if got, want := <-left, other+" true 1"; got != want {
			t.Errorf("%s serves: left %q, want %q", name, got, want)
		}
		proc.await(func(r record) bool { return r.Server == "metrics" }) // signals are caught
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := <-proc.code; code != exitOK {
			t.Errorf("code %d", code)
		}
	}
}

func TestCleanupOfBoth(t *testing.T) {
	k := exampleKernel()
	k.iptables.cleanup = func(config.Config) ([]string, error) { return []string{"chain LBP-SERVICES"}, errors.New("busy") }
	a, stdout, stderr := fakeApp(k)
	code := a.execute([]string{"cleanup"})
	if want := "removed chain LBP-SERVICES\nremoved /sys/fs/bpf/lbproxy/v1\n"; code != exitFailure || stdout.String() != want || stderr.String() != "lbproxy: cleanup: busy\n" {
		t.Errorf("code %d, %q, %q; want both, and the error of one", code, stdout, stderr)
	}
}

func TestViews(t *testing.T) {
	shown := func(v view, err error) access {
		a := noState()
		a.view = func(config.Config) (view, error) { return v, err }
		return a
	}
	name := func(n string) dataplane.ServiceView { return dataplane.ServiceView{Name: "a/" + n + "/TCP/IPv4"} }
	conn := dataplane.ConnectionView{Proto: "TCP"}
	passing := &fakeView{
		services: []dataplane.ServiceView{name("x")}, connections: []dataplane.ConnectionView{conn, conn},
		explanation: dataplane.Explanation{Decision: "pass", Reason: "no frontend", Steps: []string{"1"}},
	}
	forwarding := &fakeView{
		services: []dataplane.ServiceView{name("x"), name("y")}, connections: []dataplane.ConnectionView{conn, conn},
		explanation: dataplane.Explanation{Decision: "forward", Reason: "a frontend", Steps: []string{"2", "3"}},
	}
	broken := errors.New("iptables-save: no")
	for _, tc := range []struct {
		name                    string
		ebpf, iptables          access
		fails, services, reason string
		conns                   int
		steps                   []string
		stderr                  string
	}{
		{"eBPF", shown(passing, nil), noState(), "", "a/x/TCP/IPv4", "no frontend", 2, []string{"1"}, ""},
		{"iptables", noState(), shown(forwarding, nil), "", "a/x/TCP/IPv4 a/y/TCP/IPv4", "a frontend", 2, []string{"2", "3"}, ""},
		{"both", shown(passing, nil), shown(forwarding, nil), "", "a/x/TCP/IPv4 a/y/TCP/IPv4", "a frontend", 3, []string{"1", "2", "3"}, ""},
		{"both, the first decides", shown(forwarding, nil), shown(passing, nil), "", "a/x/TCP/IPv4 a/y/TCP/IPv4", "a frontend", 3, []string{"2", "3"}, ""},
		{"none", noState(), noState(), "lbproxy has no state here", "", "", 0, nil, ""},
		{"one cannot be read", shown(passing, nil), shown(nil, broken), "", "a/x/TCP/IPv4", "no frontend", 2, []string{"1"}, "lbproxy: iptables-save: no\n"},
		{"one is not there, one cannot be read", noState(), shown(nil, broken), "iptables-save: no", "", "", 0, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, _, stderr := fakeApp(kernel{ebpf: tc.ebpf, iptables: tc.iptables})
			v, err := a.openView(config.Config{})
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Errorf("error %v, want %q", err, tc.fails)
				}
				return
			}
			if err != nil || stderr.String() != tc.stderr {
				t.Fatalf("error %v, stderr %q, want %q", err, stderr, tc.stderr)
			}
			svcs, err1 := v.Services()
			conns, err2 := v.Connections(3)
			e, err3 := v.Explain(netip.Addr{}, lb.FrontendKey{})
			var names []string
			for _, s := range svcs {
				names = append(names, s.Name)
			}
			if err := errors.Join(err1, err2, err3, v.Close()); err != nil || strings.Join(names, " ") != tc.services ||
				len(conns) != tc.conns || e.Reason != tc.reason || !reflect.DeepEqual(e.Steps, tc.steps) {
				t.Errorf("got %q, %d connections, %+v, %v", names, len(conns), e, err)
			}
		})
	}
}

func TestApproximationsAreToldOnce(t *testing.T) {
	x := lb.ServiceName{Object: lb.Object{Namespace: "a", Name: "x"}, Proto: lb.TCP, Family: lb.IPv4}
	y := lb.ServiceName{Object: lb.Object{Namespace: "a", Name: "y"}, Proto: lb.TCP, Family: lb.IPv4}
	svc := func(n lb.ServiceName, algorithm string) *dataplane.Service {
		return &dataplane.Service{Name: n, Balance: lb.Balance{Algorithm: algorithm}}
	}
	var events []string
	a := newApproximations(slog.New(slog.DiscardHandler))
	a.event = func(obj lb.Object, eventtype, reason, message string) {
		events = append(events, fmt.Sprint(obj, " ", eventtype, " ", reason, " ", message))
	}
	a.note(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc(x, "least-connection"), svc(y, "round-robin")}})
	a.announce(x, "by shares")
	a.announce(x, "by shares")
	a.announce(y, "")
	a.announce(y, "in groups")
	want := []string{"a/x Normal Approximated a/x/TCP/IPv4: by shares", "a/y Normal Approximated a/y/TCP/IPv4: in groups"}
	if !reflect.DeepEqual(events, want) {
		t.Errorf("events %q, want %q", events, want)
	}
	for _, tc := range []struct {
		what string
		do   func()
		want map[string]int
	}{
		{"both", func() {}, map[string]int{"least-connection": 1, "round-robin": 1}},
		{"one is exact again", func() { a.announce(y, "") }, map[string]int{"least-connection": 1}},
		{"another algorithm", func() { a.note(dataplane.Delta{Put: []*dataplane.Service{svc(x, "least-time")}}) }, map[string]int{"least-time": 1}},
		{"deleted", func() { a.note(dataplane.Delta{Delete: []lb.ServiceName{x}}) }, map[string]int{}},
		{"it is back", func() {
			a.note(dataplane.Delta{Put: []*dataplane.Service{svc(x, "least-time")}})
			a.announce(x, "by shares")
		}, map[string]int{"least-time": 1}},
		{"all but others are gone", func() { a.note(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc(y, "random")}}) }, map[string]int{}},
	} {
		if tc.do(); !reflect.DeepEqual(a.count(), tc.want) {
			t.Errorf("%s: %v, want %v", tc.what, a.count(), tc.want)
		}
	}
	if len(events) != 3 {
		t.Errorf("events %q, want one more", events)
	}
}
