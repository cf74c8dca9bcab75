// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// TestInitOnly prepares the node and opens nothing, as the init container of a
// kube-proxy does.
func TestInitOnly(t *testing.T) {
	var scores []int
	var tracked []uint32
	var mounted, opened []string
	k := kernel{
		ebpf:         access{check: func(config.Config) []finding { return nil }},
		openLocalnet: func(c config.Config, _ *slog.Logger) { opened = append(opened, c.Dataplane) },
		mountBPFFS: func(dir string) (bool, error) {
			mounted = append(mounted, dir)
			return true, nil
		},
		setOOMScore: func(n int) error {
			scores = append(scores, n)
			return errors.New("not permitted")
		},
		setConntrack: func(c config.Config, _ *slog.Logger) { tracked = append(tracked, c.Conntrack.MaxPerCore) },
	}
	a, _, stderr := fakeApp(k)
	if code := a.execute([]string{"run", "--init-only", "--manifests=" + t.TempDir(), "--oom-score-adj=-5"}); code != exitOK {
		t.Errorf("code %d: %s", code, stderr)
	}
	if len(opened) != 0 {
		t.Errorf("route_localnet is set for %v, where eBPF can serve", opened)
	}
	if code := a.execute([]string{"run", "--init-only", "--manifests=" + t.TempDir(), "--dataplane=iptables"}); code != exitOK {
		t.Errorf("code %d: %s", code, stderr)
	}
	if len(opened) != 1 || len(mounted) != 1 {
		t.Errorf("iptables: route_localnet for %v, mounted %v; want the first once, and nothing mounted", opened, mounted)
	}
	scores, tracked = scores[:1], tracked[:1]
	if len(mounted) != 1 || mounted[0] != config.Default().BPFFS {
		t.Errorf("mounted %v, want %s once", mounted, config.Default().BPFFS)
	}
	if len(scores) != 1 || scores[0] != -5 || len(tracked) != 1 || tracked[0] != 32<<10 {
		t.Errorf("scores %v, conntrack %v; want -5 and 32768 once", scores, tracked)
	}
	for _, want := range []string{"not permitted", "oom-score-adj=-5", "mounted a bpffs", "nothing is served"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, stderr)
		}
	}
}

// TestRunPreparesTheNode whatever the dataplane.
func TestRunPreparesTheNode(t *testing.T) {
	done := make(chan string, 2)
	k := kernel{
		ebpf: opens(&fakePlane{services: map[string]*dataplane.Service{}}), iptables: noState(),
		setOOMScore: func(n int) error {
			if n == config.Default().OOMScoreAdj {
				done <- "oom"
			}
			return nil
		},
		setConntrack: func(config.Config, *slog.Logger) { done <- "conntrack" },
	}
	proc := startWith(t, k, "--manifests="+t.TempDir())
	if first, second := <-done, <-done; first != "oom" || second != "conntrack" {
		t.Errorf("got %s, %s", first, second)
	}
	proc.await(func(r record) bool { return r.Msg == "starting" })
	proc.terminate()
}

// TestPagesOfTheMetricsServer asks a running agent for what kube-proxy serves there.
func TestPagesOfTheMetricsServer(t *testing.T) {
	kubeconfig, _ := apiServer(t)
	proc := start(t, &fakePlane{services: map[string]*dataplane.Service{}}, "--kubeconfig="+kubeconfig, "--profiling")
	t.Cleanup(proc.terminate)
	at := "http://" + proc.await(func(r record) bool { return r.Msg == "serving" && r.Server == "metrics" }).Address
	go func() { // debug messages are many
		for range proc.logs {
		}
	}()
	has := func(parts ...string) func(int, string) bool {
		return func(code int, body string) bool {
			for _, p := range parts {
				if !strings.Contains(body, p) {
					return false
				}
			}
			return code == http.StatusOK
		}
	}
	fetch(t, at+"/flagz", has("\nnode-name=n1\n", "\nprofiling=true\n"))
	fetch(t, at+"/statusz", has("Binary version: "+version))
	fetch(t, at+"/healthz", has("ok"))
	fetch(t, at+"/metrics/slis", has(`kubernetes_healthcheck{name="ping",type="healthz"} 1`))
	fetch(t, at+"/debug/pprof/heap?debug=1", has("heap profile"))
	fetch(t, at+"/metrics", has(`rest_client_requests_total{code="200"`, `rest_client_request_duration_seconds_count{`,
		"kubeproxy_sync_proxy_rules_service_changes_total 0", `kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} `))
	for _, debug := range []bool{true, false} {
		v := map[bool]string{true: "4", false: "2"}[debug]
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, at+"/debug/flags/v", strings.NewReader(v))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if enabled := (*clientLog.Load()).Enabled(t.Context(), slog.LevelDebug); resp.StatusCode != http.StatusOK || enabled != debug {
			t.Errorf("verbosity %s: code %d, debug messages are logged: %t, want %t", v, resp.StatusCode, enabled, debug)
		}
	}
}

func TestVerbosity(t *testing.T) {
	var v verbosity
	v.configure(slog.LevelWarn)
	set, level := v.set, &v.level
	for _, tc := range []struct {
		v    string
		want slog.Level
	}{{"4", slog.LevelDebug}, {"3", slog.LevelWarn}, {"10", slog.LevelDebug}, {"0", slog.LevelWarn}} {
		if err := set(tc.v); err != nil || level.Level() != tc.want {
			t.Errorf("%s: %s, %v; want %s", tc.v, level.Level(), err, tc.want)
		}
	}
	for _, bad := range []string{"", "-1", "x"} {
		if err := set(bad); err == nil || level.Level() != slog.LevelWarn {
			t.Errorf("%q: %v, level %s; want an error and no change", bad, err, level.Level())
		}
	}
	if err := set("4"); err != nil {
		t.Fatal(err)
	}
	if v.configure(slog.LevelWarn); level.Level() != slog.LevelDebug {
		t.Errorf("level %s, want what was set: the configuration is as before", level.Level())
	}
	if v.configure(slog.LevelError); level.Level() != slog.LevelError {
		t.Errorf("level %s, want the configuration's new one", level.Level())
	}
}

// TestSetOOMScore writes what is there already.
func TestSetOOMScore(t *testing.T) {
	before, err := os.ReadFile(oomScoreFile)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(before)))
	if err != nil {
		t.Fatal(err)
	}
	if err := setOOMScore(n); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadFile(oomScoreFile); err != nil || string(after) != string(before) {
		t.Errorf("got %q, %v; want %q", after, err, before)
	}
}

// terminate ends the process as the kubelet does.
func (p *process) terminate() {
	p.t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if code := <-p.code; code != exitOK {
		p.t.Errorf("code %d", code)
	}
}
