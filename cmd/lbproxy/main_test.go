// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/server"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with testdata/NAME.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with -update)", err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// fakeView shows a fixed kernel.
type fakeView struct {
	services    []dataplane.ServiceView
	connections []dataplane.ConnectionView
	explanation dataplane.Explanation
	err         error
}

func (v *fakeView) Services() ([]dataplane.ServiceView, error) { return v.services, v.err }

func (v *fakeView) Connections(limit int) ([]dataplane.ConnectionView, error) {
	if limit > 0 && len(v.connections) > limit {
		return v.connections[:limit], v.err
	}
	return v.connections, v.err
}

func (v *fakeView) Explain(netip.Addr, lb.FrontendKey) (dataplane.Explanation, error) {
	return v.explanation, v.err
}

func (v *fakeView) Close() error { return nil }

// exampleView is a small node, in no order.
func exampleView() *fakeView {
	web := []dataplane.BackendView{
		{Address: "10.244.1.10:8080", State: "active", Pools: "cluster", Opened: 50, Closed: 45, Live: 5, Share: 0.25, Weight: 20, Expected: 0.1, Starting: true, LatencyMicros: 1250},
		{Address: "10.244.1.9:8080", State: "active", Pools: "both", Opened: 100, Closed: 80, Live: 20, Failed: 1, Share: 0.5, Weight: 100, Expected: 0.9},
		{Address: "10.244.2.3:8080", State: "leaving", Opened: 50, Closed: 49, Live: 1, Share: 0.25},
	}
	return &fakeView{
		services: []dataplane.ServiceView{
			{Name: "shop/web:http/TCP/IPv4", Kind: "least", Algorithm: "least-connection", Backends: web, Frontends: []dataplane.FrontendView{
				{Address: "10.96.1.1:80/TCP", Type: "ClusterIP"}, {Address: "0.0.0.0:30080/TCP", Type: "NodePort"},
				{Address: "192.0.2.1:80/TCP", Type: "LoadBalancer"}, {Address: "192.0.2.2:80/TCP", Type: "ExternalIP"},
			}},
			{Name: "kube-system/kube-dns:dns/UDP/IPv6", Rejected: 12, Frontends: []dataplane.FrontendView{
				{Address: "[fd00:96::a]:53/UDP", Type: "ClusterIP"},
			}},
			{Name: "default/single/TCP/IPv4", Kind: "seq", Backends: web[:1]},
		},
		connections: []dataplane.ConnectionView{
			{Proto: "TCP", Client: "198.51.100.7:40001", Frontend: "192.0.2.200:30080", Backend: "10.244.1.9:8080", State: "replied", Idle: 3100 * time.Millisecond},
			{Proto: "TCP", Client: "198.51.100.7:4000", Frontend: "10.96.1.1:80", Backend: "10.244.1.10:8080", State: "closing", Idle: time.Minute},
			{Proto: "UDP", Client: "198.51.100.7:5", Frontend: "10.96.9.9:53", Backend: "10.244.1.10:53", State: "new"},
		},
		explanation: dataplane.Explanation{
			Decision: "forward", Reason: "the Service has backends", Service: "shop/web:http/TCP/IPv4",
			Candidates: web[:2], Masquerade: true,
			Steps: []string{"frontends: 10.96.1.1:80/TCP is service 7", "services: 7 has 2 backends in its cluster pool"},
		},
	}
}

// fakeApp is lbproxy over a kernel that tests decide about.
func fakeApp(k kernel) (a *app, stdout, stderr *bytes.Buffer) {
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	a = &app{stdout: stdout, stderr: stderr, kernel: k, now: func() time.Time { return exampleTime }}
	a.terminal = func(io.Writer) bool { return false }
	a.askConfig = func(context.Context, string) (server.Config, error) { return exampleConfig(), nil }
	a.ask = func(context.Context, string) ([]server.Verdict, error) { return exampleVerdicts(), nil }
	a.askResting = func(context.Context, string) ([]server.Resting, error) { return nil, nil }
	return a, stdout, stderr
}

// noState is a dataplane that works and has nothing in the kernel.
func noState() access {
	return access{
		view:    func(config.Config) (view, error) { return nil, fmt.Errorf("/nowhere: %w", dataplane.ErrNoState) },
		check:   func(config.Config) []finding { return nil },
		cleanup: func(config.Config) ([]string, error) { return nil, nil },
	}
}

func exampleKernel() kernel {
	return kernel{
		ebpf: access{
			view: func(config.Config) (view, error) { return exampleView(), nil },
			check: func(config.Config) []finding {
				return []finding{
					{config.EBPF, "privileges", levelOK, "root"},
					{config.EBPF, "kernel", levelFail, "5.4 has no getpeername hook: want 6.1"},
				}
			},
			cleanup: func(config.Config) ([]string, error) { return []string{"/sys/fs/bpf/lbproxy/v1"}, nil },
			open:    func(config.Config, announcer, *slog.Logger) (plane, error) { return nil, errors.New("needs root") },
		},
		iptables: noState(),
	}
}

func TestOutput(t *testing.T) {
	for _, tc := range []struct{ golden, args string }{
		{"services.txt", "get services"},
		{"services.json", "get svc -o json"},
		{"services.yaml", "get services -o yaml -n shop"},
		{"backends.txt", "get backends"},
		{"backends.json", "get backends -o json -n shop"},
		{"connections.txt", "get connections"},
		{"connections-shop.txt", "get connections -n shop"},
		{"connections.yaml", "get connections -o yaml"},
		{"health.txt", "get health"},
		{"health.json", "get health -o json"},
		{"health.yaml", "get health -o yaml -n shop"},
		{"config.txt", "get config"},
		{"config.json", "get config --given -o json"},
		{"none.json", "get backends -n nothing -o json"},
		{"explain.txt", "explain --from 10.244.1.5 --to 10.96.1.1:80"},
		{"explain.json", "explain --from 10.244.1.5 --to 10.96.1.1:80/tcp -o json"},
		{"cleanup.txt", "cleanup"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			a, stdout, stderr := fakeApp(exampleKernel())
			if code := a.execute(strings.Fields(tc.args)); code != exitOK || stderr.Len() > 0 {
				t.Fatalf("code %d, stderr %q", code, stderr)
			}
			golden(t, tc.golden, stdout.String())
		})
	}
}

func TestCheck(t *testing.T) {
	a, stdout, stderr := fakeApp(exampleKernel())
	args := []string{"check", "--manifests=" + os.DevNull, "--healthz-bind-address=", "--metrics-bind-address=", "--dataplane=ebpf"}
	if code := a.execute(args); code != exitFailure {
		t.Errorf("code %d, want %d", code, exitFailure)
	}
	golden(t, "check.txt", stdout.String())
	if got, want := stderr.String(), "lbproxy: this node is not fit: 2 of 8 checks failed\n"; got != want {
		t.Errorf("stderr %q, want %q", got, want)
	}
}

func TestNothingToShow(t *testing.T) {
	a, stdout, stderr := fakeApp(exampleKernel())
	if code := a.execute([]string{"get", "services", "-n", "nothing"}); code != exitOK {
		t.Errorf("code %d", code)
	}
	if stdout.Len() > 0 || stderr.String() != "no services\n" {
		t.Errorf("stdout %q, stderr %q; want only a line on stderr", stdout, stderr)
	}
}

func TestApproximationIsShown(t *testing.T) {
	v := &fakeView{
		services: []dataplane.ServiceView{{
			Name: "shop/web:http/TCP/IPv4", Kind: "rules", Algorithm: "least-connection", Approximation: "by shares",
			Backends: []dataplane.BackendView{{Address: "10.244.1.10:8080", State: "active", Expected: 1}},
		}},
		explanation: dataplane.Explanation{Decision: "forward", Approximation: "by shares"},
	}
	k := exampleKernel()
	k.ebpf.view = func(config.Config) (view, error) { return v, nil }
	for args, want := range map[string]string{
		"get services":         " ~least-connection ",
		"get services -o json": `"approximation": "by shares"`,
		"get backends":         " - - 100.0% 0.0% suspect: ", // latency, weight, expected, share, health
		"explain --from 10.244.1.5 --to 10.96.1.1:80":         "Approximated: by shares",
		"explain --from 10.244.1.5 --to 10.96.1.1:80 -o yaml": "approximation: by shares",
	} {
		a, stdout, stderr := fakeApp(k)
		code := a.execute(strings.Fields(args))
		if text := regexp.MustCompile(" +").ReplaceAllString(stdout.String(), " "); code != exitOK || !strings.Contains(text, want) {
			t.Errorf("%s: code %d, %q lacks %q, stderr %q", args, code, text, want, stderr)
		}
	}
}

func TestLimitIsSaid(t *testing.T) {
	a, stdout, stderr := fakeApp(exampleKernel())
	if code := a.execute([]string{"get", "connections", "--limit=1"}); code != exitOK {
		t.Errorf("code %d", code)
	}
	if n := strings.Count(stdout.String(), "\n"); n != 2 || !strings.Contains(stderr.String(), "--limit 0") {
		t.Errorf("%d lines, stderr %q; want 2 lines and a hint", n, stderr)
	}
}

func TestErrors(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	dir := t.TempDir()
	broken := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(broken, []byte("clusters: 7"), 0o600); err != nil {
		t.Fatal(err)
	}
	failing := func(err error) kernel {
		a := noState()
		a.view = func(config.Config) (view, error) { return nil, err }
		a.cleanup = func(config.Config) ([]string, error) { return nil, err }
		a.open = func(config.Config, announcer, *slog.Logger) (plane, error) { return nil, err }
		return kernel{ebpf: a, iptables: noState()}
	}
	for _, tc := range []struct {
		args string
		env  []string
		err  error // of the kernel
		code int
		want string // the start of the line on stderr
	}{
		{args: "sing", code: 2, want: `lbproxy: unknown command "sing" for "lbproxy"`},
		{args: "get", code: 2, want: "lbproxy: get what: want services, backends, connections, health or config (see lbproxy get --help)"},
		{args: "get bogus", code: 2, want: `lbproxy: unknown command "bogus" for "lbproxy get"`},
		{args: "get services extra", code: 2, want: `lbproxy: unknown command "extra"`},
		{args: "get services -o xml", code: 2, want: `lbproxy: output (from --output): "xml": want table, json or yaml (see lbproxy get services --help)`},
		{args: "get services --kubeconfig=x", code: 2, want: "lbproxy: unknown flag: --kubeconfig"},
		{args: "run --algorithm=fastest", code: 2, want: `lbproxy: algorithm (from --algorithm): unknown algorithm "fastest": want one of random, round-robin`},
		{args: "run --proxy-mode=kernelspace", code: 2, want: `lbproxy: dataplane (from --dataplane): "kernelspace": want auto, ebpf or iptables`},
		{args: "run --iptables-masquerade-bit=32", code: 2, want: `lbproxy: iptables-masquerade-bit (from --iptables-masquerade-bit): "32": want a number from 0 to 31`},
		{args: "run", env: []string{"LBPROXY_LOG_LEVEL=loud"}, code: 2, want: "lbproxy: log-level (from LBPROXY_LOG_LEVEL): "},
		{args: "run --config=/nonexistent.yaml", code: 2, want: "lbproxy: config (from --config): open /nonexistent.yaml: no such file or directory"},
		{args: "run --kubeconfig=/a --manifests=/b", code: 2, want: "lbproxy: manifests (from --manifests): excludes kubeconfig (from --kubeconfig)"},
		{args: "run", code: 1, want: "lbproxy: no source of Services: this is not a pod, and none of --kubeconfig, --master and --manifests is given"},
		{args: "run --kubeconfig=/nonexistent", code: 1, want: "lbproxy: kubeconfig: stat /nonexistent: no such file or directory"},
		{args: "run --kubeconfig=" + broken, code: 1, want: "lbproxy: kubeconfig " + broken + ": "},
		{args: "run --manifests=/nonexistent", code: 1, want: "lbproxy: manifests: stat /nonexistent: no such file or directory"},
		{args: "run --manifests=" + broken, code: 1, want: "lbproxy: manifests: " + broken + " is not a directory"},
		{args: "run --manifests=" + dir, err: ebpf.ErrRunning, code: 1, want: "lbproxy: dataplane: another lbproxy is running"},
		{args: "run --dataplane=ebpf --manifests=" + dir, err: errors.New("a\n  b"), code: 1, want: "lbproxy: dataplane: a; b\n"},
		{args: "cleanup", err: fmt.Errorf("%w: it holds the lock", ebpf.ErrRunning), code: 1, want: "lbproxy: another lbproxy is running: it holds the lock: stop it first"},
		{args: "get services", err: errors.New("no pins"), code: 1, want: "lbproxy: no pins\n"},
		{args: "explain --to=10.0.0.1:80", code: 2, want: `lbproxy: required flag(s) "from" not set`},
		{args: "explain --from=x --to=10.0.0.1:80", code: 2, want: `lbproxy: from (from --from): "x": want an IP address`},
		{args: "explain --from=10.0.0.2 --to=10.0.0.1", code: 2, want: `lbproxy: to (from --to): "10.0.0.1": want ip:port`},
		{args: "explain --from=10.0.0.2 --to=10.0.0.1:80/icmp", code: 2, want: `lbproxy: to (from --to): "10.0.0.1:80/icmp": protocol "icmp"`},
		{args: "explain --from=10.0.0.2 --to=[fd00::1]:80", code: 2, want: "lbproxy: from 10.0.0.2 to [fd00::1]:80: want addresses of one family"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			a, stdout, stderr := fakeApp(failing(tc.err))
			a.environ = tc.env
			code := a.execute(strings.Fields(tc.args))
			if code != tc.code || !strings.HasPrefix(stderr.String(), tc.want) {
				t.Errorf("code %d, stderr %q\nwant %d, %q", code, stderr, tc.code, tc.want)
			}
			if stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("stdout %q, stderr %q; want one line on stderr", stdout, stderr)
			}
		})
	}
}

func TestVersionAndHelp(t *testing.T) {
	for args, want := range map[string]string{
		"version": ", map layout v", "": "Available Commands", "run --help": "--healthz-bind-address ip:port",
		"get --help": "connections", "get health --help": "The agent is asked", "help explain": "--from ip",
	} {
		a, stdout, stderr := fakeApp(kernel{})
		if code := a.execute(strings.Fields(args)); code != exitOK || !strings.Contains(stdout.String(), want) {
			t.Errorf("lbproxy %s: code %d, stderr %q, stdout lacks %q:\n%s", args, code, stderr, want, stdout)
		}
	}
}

func TestEveryNodeHashesAlike(t *testing.T) {
	cfg := config.Config{HashSeed: 1 << 63}
	if e, i := ebpfOptions(cfg, nil).HashSeed, iptablesOptions(cfg, nil).HashSeed; e != 1<<63 || i != 1<<63 {
		t.Errorf("the dataplanes hash from %d and %d, want %d", e, i, uint64(1)<<63)
	}
}
