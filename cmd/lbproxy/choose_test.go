// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
)

// Findings about a dataplane that works with a limit, and about ones that do not.
var (
	fit     = []finding{{"", "kernel", levelOK, "6.18"}, {"", "tcx", levelWarn, "not in this kernel"}}
	noBTF   = []finding{{"", "kernel", levelOK, "5.4"}, {"", "BTF", levelFail, "not in this kernel"}, {"", "bpffs", levelFail, "none"}}
	noIPSet = []finding{{"", "ip_set", levelFail, "no such module"}}
)

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		want           string
		ebpf, iptables []finding
		dataplane, why string
		fallback       bool
	}{
		{config.Auto, fit, fit, config.EBPF, "it is the better one, and nothing is in its way", false},
		{config.Auto, fit, noIPSet, config.EBPF, "it is the better one, and nothing is in its way", false},
		{config.Auto, noBTF, fit, config.IPTables, "ebpf cannot run here: BTF: not in this kernel; bpffs: none", true},
		{config.Auto, noBTF, noIPSet, "", "ebpf cannot run here: BTF: not in this kernel; bpffs: none; and iptables cannot: ip_set: no such module", false},
		{config.EBPF, noBTF, fit, config.EBPF, "the configuration says so", false},
		{config.IPTables, fit, noIPSet, config.IPTables, "the configuration says so", false},
	} {
		got := choose(tc.want, tc.ebpf, tc.iptables)
		if want := (choice{tc.dataplane, tc.why, tc.fallback}); got != want {
			t.Errorf("%s: got %+v, want %+v", tc.want, got, want)
		}
	}
}

// plain is a dataplane about which there are findings, and that opens or fails.
func plain(found []finding, err error) access {
	a := noState()
	a.check = func(config.Config) []finding { return found }
	a.open = func(config.Config, announcer, *slog.Logger) (plane, error) {
		if err != nil {
			return nil, err
		}
		return &fakePlane{services: map[string]*dataplane.Service{}}, nil
	}
	return a
}

func TestOpenTakesWhatWorks(t *testing.T) {
	broken := errors.New("the verifier\n  refuses")
	for _, tc := range []struct {
		name           string
		want           string
		ebpf, iptables access
		dataplane      string
		says           string // of the reason, or of the error
		fails          bool
	}{
		{"auto", config.Auto, plain(fit, nil), plain(fit, nil), config.EBPF, "the better one", false},
		{"without BTF", config.Auto, plain(noBTF, nil), plain(fit, nil), config.IPTables, "BTF: not in this kernel", false},
		{"nothing works", config.Auto, plain(noBTF, nil), plain(noIPSet, nil), "",
			"no dataplane works on this node: ebpf cannot run here: BTF: not in this kernel; bpffs: none; and iptables cannot: ip_set: no such module", true},
		{"eBPF fails late", config.Auto, plain(fit, broken), plain(fit, nil), config.IPTables, "ebpf cannot run here: start: the verifier; refuses", false},
		{"both fail late", config.Auto, plain(fit, broken), plain(fit, errors.New("exec: no such program")), "", "exec: no such program", true},
		{"eBPF fails late, and iptables cannot", config.Auto, plain(fit, broken), plain(noIPSet, nil), "", "and iptables cannot: ip_set", true},
		{"another one runs", config.Auto, plain(fit, fmt.Errorf("%w: the lock", ebpf.ErrRunning)), plain(fit, nil), "", "another lbproxy is running", true},
		{"one with iptables runs", config.Auto, plain(fit, fmt.Errorf("%w: the lock", iptables.ErrRunning)), plain(fit, nil), "", "another lbproxy is running", true},
		{"eBPF, as configured", config.EBPF, plain(fit, broken), plain(fit, nil), "", "the verifier", true},
		{"iptables, as configured", config.IPTables, plain(fit, nil), plain(noIPSet, nil), config.IPTables, "the configuration says so", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := &app{kernel: kernel{ebpf: tc.ebpf, iptables: tc.iptables}}
			dp, c, err := a.open(config.Config{Dataplane: tc.want}, nil, nil)
			if tc.fails {
				if err == nil || dp != nil || !strings.Contains(err.Error(), tc.says) {
					t.Fatalf("got %v, %v; want an error that says %q", dp, err, tc.says)
				}
				return
			}
			if err != nil || dp == nil || c.dataplane != tc.dataplane || !strings.Contains(c.reason, tc.says) ||
				c.fallback != (tc.want == config.Auto && tc.dataplane == config.IPTables) {
				t.Errorf("got %+v, %v; want %s because %q", c, err, tc.dataplane, tc.says)
			}
		})
	}
}

func TestCheckTellsWhatWouldBeUsed(t *testing.T) {
	for _, tc := range []struct {
		args           string
		ebpf, iptables []finding
		code           int
		says           string
	}{
		{"check", fit, noIPSet, exitOK, "OK - dataplane would use ebpf: it is the better one"},
		{"check", noBTF, fit, exitOK, "WARN - dataplane would use iptables: ebpf cannot run here: BTF: not in this kernel; bpffs: none"},
		{"check", noBTF, noIPSet, exitFailure, "FAIL - dataplane would not run: ebpf cannot run here"},
		{"check --dataplane=ebpf", noBTF, fit, exitFailure, "OK - dataplane would use ebpf: the configuration says so"},
		{"check --dataplane=iptables", fit, noIPSet, exitFailure, "OK - dataplane would use iptables: the configuration says so"},
		{"check --proxy-mode=ipvs", fit, fit, exitOK, "WARN - dataplane ipvs is a mode of kube-proxy that lbproxy has not; auto is used; would use ebpf"},
	} {
		label := func(name string, fs []finding) (out []finding) {
			for _, f := range fs {
				f.Dataplane = name
				out = append(out, f)
			}
			return out
		}
		a, stdout, stderr := fakeApp(kernel{ebpf: plain(label(config.EBPF, tc.ebpf), nil), iptables: plain(label(config.IPTables, tc.iptables), nil)})
		args := append(strings.Fields(tc.args), "--manifests="+t.TempDir(), "--healthz-bind-address=", "--metrics-bind-address=")
		code := a.execute(args)
		if text := strings.Join(strings.Fields(stdout.String()), " "); code != tc.code || !strings.Contains(text, tc.says) {
			t.Errorf("%s: code %d, want %d, %q\n%s%s", tc.args, code, tc.code, tc.says, stdout, stderr)
		}
	}
}

// TestRunFallsBack: the log, an Event on the Node, /proxyMode and a metric say so.
func TestRunFallsBack(t *testing.T) {
	api, kubeconfig := newNodeServer(t)
	proc := startWith(t, kernel{ebpf: plain(noBTF, nil), iptables: plain(fit, nil)}, "--kubeconfig="+kubeconfig, "--proxy-mode=nftables")
	proc.await(func(r record) bool { return r.Level == "WARN" && r.Mode == "nftables" })
	proc.await(func(r record) bool { return r.Msg == "starting" && r.Dataplane == config.IPTables })
	proc.await(func(r record) bool {
		return r.Level == "WARN" && strings.Contains(r.Because, "BTF: not in this kernel")
	})
	metrics := "http://" + proc.await(func(r record) bool { return r.Server == "metrics" }).Address
	if got := fetch(t, metrics+"/proxyMode", func(code int, _ string) bool { return code == http.StatusOK }); got != config.IPTables {
		t.Errorf("proxyMode %q, want %s", got, config.IPTables)
	}
	fetch(t, metrics+"/metrics", func(_ int, body string) bool {
		return strings.Contains(body, `lbproxy_dataplane_info{dataplane="iptables"} 1`) &&
			strings.Contains(body, `lbproxy_dataplane_fallback{because="ebpf cannot run here: BTF: not in this kernel; bpffs: none"} 1`)
	})
	events := fmt.Sprint(<-api.events, <-api.events)
	for _, want := range []string{"Starting", "DataplaneFallback", "Warning", "iptables is used: ebpf cannot run here: BTF"} {
		if !strings.Contains(events, want) {
			t.Errorf("events %q lack %q", events, want)
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-proc.code; code != exitOK {
		t.Errorf("code %d", code)
	}
}
