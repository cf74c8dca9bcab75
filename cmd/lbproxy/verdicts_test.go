// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/server"
)

// exampleTime is when fakeApp shows what there is.
var exampleTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// exampleVerdicts are what the agent of exampleView thinks, in no order.
func exampleVerdicts() []server.Verdict {
	const web = "shop/web:http/TCP/IPv4"
	until := exampleTime.Add(8 * time.Second)
	return []server.Verdict{
		{Service: web, Backend: "10.244.1.10:8080", State: "suspect", Probe: "http", Since: exampleTime.Add(-1200 * time.Millisecond),
			Reason: "a connection was refused", Ejections: 1},
		{Service: web, Backend: "10.244.1.9:8080", State: "healthy", Probe: "http", Since: exampleTime.Add(-90 * time.Minute), Reason: "http: status 200"},
		{Service: web, Backend: "10.244.3.4:8080", State: "ejected", Probe: "http", Since: exampleTime.Add(-12 * time.Second),
			Reason: "http: status 503, want 200-399", Ejections: 2, Until: &until},
		{Service: "default/single/TCP/IPv4", Backend: "10.244.1.10:8080", State: "ejected", Probe: "none", Since: exampleTime,
			Reason: "tcp: connection refused", Ignored: "it is the only backend", Ejections: 1},
	}
}

// TestWithoutAnAgent what the kernel has is shown all the same.
func TestWithoutAnAgent(t *testing.T) {
	for _, args := range []string{"get backends", "explain --from 10.244.1.5 --to 10.96.1.1:80"} {
		a, stdout, stderr := fakeApp(exampleKernel())
		a.ask = func(_ context.Context, dir string) ([]server.Verdict, error) {
			return nil, fmt.Errorf("%w at %s/x", server.ErrNoAgent, dir)
		}
		code := a.execute(append(strings.Fields(args), "--state-dir=/here"))
		if want := "health is not known: no agent answers at /here/x\n"; code != exitOK || stderr.String() != want {
			t.Errorf("%s: code %d, stderr %q, want %q", args, code, stderr, want)
		}
		for line := range strings.Lines(stdout.String()) {
			if strings.Contains(line, "%") && !strings.HasSuffix(line, " -\n") {
				t.Errorf("%s: %q does not end in -", args, line)
			}
		}
	}
	a, stdout, stderr := fakeApp(exampleKernel())
	a.ask = func(context.Context, string) ([]server.Verdict, error) { return nil, server.ErrNoAgent }
	if code := a.execute([]string{"get", "health"}); code != exitFailure || stdout.Len() > 0 || stderr.String() != "lbproxy: no agent answers (is lbproxy run active on this node, with this --state-dir?)\n" {
		t.Errorf("get health: code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestNobodyIsWatched(t *testing.T) {
	a, stdout, stderr := fakeApp(exampleKernel())
	if code := a.execute([]string{"get", "health", "-n", "nothing"}); code != exitOK || stdout.Len() > 0 ||
		stderr.String() != "no backends that are watched\n" {
		t.Errorf("code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	a, stdout, _ = fakeApp(exampleKernel())
	if code := a.execute([]string{"get", "health", "-n", "nothing", "-o", "json"}); code != exitOK || stdout.String() != "[]\n" {
		t.Errorf("code %d, stdout %q", code, stdout)
	}
}

// TestReasonsStayInTheirCells whatever a backend has answered.
func TestReasonsStayInTheirCells(t *testing.T) {
	a, stdout, _ := fakeApp(exampleKernel())
	a.ask = func(context.Context, string) ([]server.Verdict, error) {
		v := exampleVerdicts()[2]
		v.Backend, v.Reason = "10.244.1.9:8080", "http: \t\n\r\nstatus"
		return []server.Verdict{v}, nil
	}
	for _, args := range []string{"get health", "get backends -n shop", "explain --from 10.244.1.5 --to 10.96.1.1:80"} {
		stdout.Reset()
		if code := a.execute(strings.Fields(args)); code != exitOK || !strings.Contains(stdout.String(), "http: status") {
			t.Errorf("%s: code %d, %q", args, code, stdout)
		}
	}
}

// TestVerdictsReachWhoAsks, from the agent through its control socket to the CLI.
func TestVerdictsReachWhoAsks(t *testing.T) {
	n := testNode(t, &fullPlane{fakePlane: fakePlane{}})
	if n.control != nil {
		t.Fatal("a control socket without a state directory")
	}
	if got := n.tell(); len(got) != 0 || n.healthNumbers().Ignored != 0 {
		t.Errorf("nothing is watched: %v", got)
	}
	name, err := lb.ParseServiceName("shop/web:http/TCP/IPv4")
	if err != nil {
		t.Fatal(err)
	}
	n.verdicts = func() []health.Verdict {
		return []health.Verdict{
			{Service: name, Backend: netip.MustParseAddrPort("10.0.0.1:80"), State: health.Ejected, Kind: lb.ProbeTCP, Since: exampleTime,
				Reason: "refused", Ignored: "too few", Ejections: 2, Until: exampleTime.Add(time.Second)},
			{Service: name, Backend: netip.MustParseAddrPort("[fd00::1]:80"), Since: exampleTime},
		}
	}
	until := exampleTime.Add(time.Second)
	want := []server.Verdict{
		{Service: "shop/web:http/TCP/IPv4", Backend: "10.0.0.1:80", State: "ejected", Probe: "tcp", Since: exampleTime,
			Reason: "refused", Ignored: "too few", Ejections: 2, Until: &until},
		{Service: "shop/web:http/TCP/IPv4", Backend: "[fd00::1]:80", State: "unknown", Probe: "default", Since: exampleTime},
	}
	if got := n.tell(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestResultsOfProbesAreObserved(t *testing.T) {
	m := server.NewMetrics("v", server.Sources{})
	observe := probeObserver(m)
	observe(lb.ProbeHTTP, time.Millisecond, nil)
	observe(lb.ProbeHTTP, time.Millisecond, errors.New("status 503"))
	observe(lb.ProbeExec, time.Millisecond, fmt.Errorf("%w: no such script", health.ErrCannot))
	if n, err := testutil.GatherAndCount(m.Gatherer(), "lbproxy_health_probe_duration_seconds"); err != nil || n != 3 {
		t.Errorf("%d results, %v, want healthy, unhealthy and cannot", n, err)
	}
}

// TestRunAnswersAtTheControlSocket has the directory that the configuration names.
func TestRunAnswersAtTheControlSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	cfg := config.Config{NodeName: "n1", Manifests: t.TempDir(), Algorithm: "random", StateDir: dir}
	log := slog.New(slog.DiscardHandler)
	own := &ownNode{}
	src, err := newSource(cfg, own.set, log)
	if err != nil {
		t.Fatal(err)
	}
	n, err := (&app{}).newNode(newConfigured(cfg, config.New(), nil, log), own, src, &fullPlane{}, choice{dataplane: config.EBPF}, newApproximations(log), log, &verbosity{})
	if err != nil || n.control == nil || n.control.Dir != dir {
		t.Fatalf("control %+v, %v, want one in %s", n.control, err, dir)
	}
	if text, err := json.Marshal(n.control.Verdicts()); err != nil || string(text) != "[]" {
		t.Errorf("verdicts %s, %v", text, err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory was made before Run")
	}
}

func TestHealthOfTheCluster(t *testing.T) {
	cfg := config.Default()
	cfg.Health.Probe.Kind = lb.ProbeTCP
	if got := endpointOptions(cfg).DefaultHealth; got != cfg.Health {
		t.Errorf("got %+v, want %+v", got, cfg.Health)
	}
}
