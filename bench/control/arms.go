// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// arm is a program with its options.
type arm struct {
	name      string
	path      string
	mode      string // of kube-proxy; empty: it is lbproxy
	dataplane string // of lbproxy: ebpf or iptables
	backend   string // of iptables, if not the machine's: nft or legacy
	pause     time.Duration
	// pause between changes is longer than what the program holds changes back for

	minSync string // of kube-proxy
	aided   bool   // kube-proxy's first restore is aided, see aidMain
}

// ebpf tells whether the arm is lbproxy without rules.
func (a arm) ebpf() bool { return a.mode == "" && a.dataplane != ruled }

// ruled is the dataplane of lbproxy, and the mode of kube-proxy, of rules.
const ruled = "iptables"

// arms are what is compared, lbproxy first.
func arms(lbproxy, kubeProxy string) []arm {
	all := []arm{
		{name: "lbproxy", path: lbproxy, dataplane: "ebpf", pause: 15 * time.Millisecond},
		{name: "lbproxy iptables", path: lbproxy, dataplane: ruled, pause: 15 * time.Millisecond},
	}
	for _, mode := range []string{"nftables", "iptables"} {
		all = append(all,
			arm{name: mode + " 1s", path: kubeProxy, mode: mode, minSync: "1s", pause: 1100 * time.Millisecond},
			arm{name: mode + " 0s", path: kubeProxy, mode: mode, minSync: "0s", pause: 15 * time.Millisecond})
	}
	return all
}

// args are the arguments of the program.
func (a arm) args(p *place) []string {
	if a.mode == "" {
		s := p.world.scale
		args := []string{"run", "--dataplane=" + a.dataplane, "--kubeconfig=" + p.kubeconfig, "--node-name=" + lab.Node,
			"--cgroup-root=" + p.lab.CgroupRoot(), "--bpffs=" + p.lab.BPFFS(), "--cluster-cidr=" + podRange.String(),
			"--state-dir=" + filepath.Join(p.lab.Dir(), "state"),
			"--healthz-bind-address=" + healthAddr, "--metrics-bind-address=" + metricsAddr}
		if s.huge() {
			args = append(args, "--max-backends=524288")
		}
		if a.backend != "" {
			args = append(args, "--iptables-backend="+a.backend)
		}
		return append(args, machines...)
	}
	args := []string{"--kubeconfig=" + p.kubeconfig, "--hostname-override=" + lab.Node, "--proxy-mode=" + a.mode,
		"--cluster-cidr=" + podRange.String(), "--iptables-min-sync-period=" + a.minSync,
		"--healthz-bind-address=" + healthAddr, "--metrics-bind-address=" + metricsAddr, "--oom-score-adj=0"}
	return append(args, machines...)
}

// machines leaves alone what is the machine's, not the namespace's.
var machines = []string{
	"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0s",
	"--conntrack-tcp-timeout-close-wait=0s",
}

// prepare makes what the program needs of a place besides an API server.
func (a arm) prepare(p *place) error {
	if a.backend == "" {
		return nil
	}
	if err := os.WriteFile(p.lock(), nil, 0o600); err != nil {
		return fmt.Errorf("lock file: %w", err)
	}
	if err := p.provide(a.backend); err != nil || !a.aided {
		return err
	}
	return p.aid()
}

// launch starts the program and returns when it had programmed everything.
func (a arm) launch(ctx context.Context, p *place, limit time.Duration) (programmed time.Time, err error) {
	if err := a.prepare(p); err != nil {
		return time.Time{}, err
	}
	if err := p.start(ctx, p.env(a.backend), a.path, a.args(p)...); err != nil {
		return time.Time{}, err
	}
	if a.mode == "" {
		err = await(ctx, limit, poll, func() (bool, error) {
			status, _, err := observe.Get(p.lab.Host(lab.Node), healthAddr, "/readyz")
			programmed = time.Now()
			return err == nil && status == http.StatusOK, nil
		})
	} else {
		err = await(ctx, limit, 250*time.Millisecond, func() (bool, error) {
			m, err := p.metrics()
			if err != nil {
				return false, nil // not up yet
			} // the time is in what it says: a poll may be late
			at := m[`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`]
			programmed = time.UnixMicro(int64(at * 1e6))
			return at > 0, nil
		})
	}
	if err != nil {
		return time.Time{}, p.explain(fmt.Errorf("not programmed: %w", err))
	}
	if a.aided { // no longer
		return programmed, p.provide(a.backend)
	}
	return programmed, nil
}

// detector returns what sees changes arrive in the kernel.
func (a arm) detector(p *place) (detector, error) {
	switch {
	case a.ebpf():
		return found(newPoolWords(p))
	case a.backend == legacyBackend:
		return found(newLegacy(p))
	}
	return found(newNetfilter(p))
}

// found is d as a detector: one that is nil is no detector.
func found[D detector](d D, err error) (detector, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}
