// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// Proxy is lbproxy or a kube-proxy, with its options.
type Proxy struct {
	Path      string
	Mode      string // of kube-proxy; empty: it is lbproxy
	Dataplane string // of lbproxy: ebpf or iptables
	Backend   string // of iptables, if not the machine's: NFT or Legacy
	MinSync   string // of kube-proxy
	Aided     bool   // kube-proxy's first restore is aided, see AidMain
	Pods      netip.Prefix
	Backends  int // that lbproxy has room for; 0: its default
}

// machines leaves alone what is the machine's, not the namespace's.
var machines = []string{
	"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0s",
	"--conntrack-tcp-timeout-close-wait=0s",
}

// args are the arguments of the program.
func (x Proxy) args(n *Node) []string {
	if x.Mode == "" {
		args := []string{"run", "--dataplane=" + x.Dataplane, "--kubeconfig=" + n.Kubeconfig, "--node-name=" + lab.Node,
			"--cgroup-root=" + n.Lab.CgroupRoot(), "--bpffs=" + n.Lab.BPFFS(), "--cluster-cidr=" + x.Pods.String(),
			"--state-dir=" + filepath.Join(n.Lab.Dir(), "state"),
			"--healthz-bind-address=" + healthAddr, "--metrics-bind-address=" + metricsAddr}
		if x.Backends > 0 {
			args = append(args, fmt.Sprintf("--max-backends=%d", x.Backends))
		}
		if x.Backend != "" {
			args = append(args, "--iptables-backend="+x.Backend)
		}
		return append(args, machines...)
	}
	args := []string{"--kubeconfig=" + n.Kubeconfig, "--hostname-override=" + lab.Node, "--proxy-mode=" + x.Mode,
		"--cluster-cidr=" + x.Pods.String(), "--iptables-min-sync-period=" + x.MinSync,
		"--healthz-bind-address=" + healthAddr, "--metrics-bind-address=" + metricsAddr, "--oom-score-adj=0"}
	return append(args, machines...)
}

// prepare makes what the program needs of a node besides an API server.
func (x Proxy) prepare(n *Node) error {
	if x.Backend == "" {
		return nil
	}
	if err := os.WriteFile(n.Lock(), nil, 0o600); err != nil {
		return fmt.Errorf("lock file: %w", err)
	}
	if err := n.provide(x.Backend); err != nil || !x.Aided {
		return err
	}
	return n.aid()
}

// Launch starts the program and returns when it had programmed everything.
func (x Proxy) Launch(ctx context.Context, n *Node, limit time.Duration) (programmed time.Time, err error) {
	if err := x.prepare(n); err != nil {
		return time.Time{}, err
	}
	if err := n.Start(ctx, n.env(x.Backend), x.Path, x.args(n)...); err != nil {
		return time.Time{}, err
	}
	if x.Mode == "" {
		err = Await(ctx, limit, poll, func() (bool, error) {
			status, _, err := observe.Get(n.Lab.Host(lab.Node), healthAddr, "/readyz")
			programmed = time.Now()
			return err == nil && status == http.StatusOK, nil
		})
	} else {
		err = Await(ctx, limit, 250*time.Millisecond, func() (bool, error) {
			m, err := n.Metrics()
			if err != nil {
				return false, nil // not up yet
			} // the time is in what it says: a poll may be late
			at := m[`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`]
			programmed = time.UnixMicro(int64(at * 1e6))
			return at > 0, nil
		})
	}
	if err != nil {
		return time.Time{}, n.Explain(fmt.Errorf("not programmed: %w", err))
	}
	if x.Aided { // no longer
		return programmed, n.provide(x.Backend)
	}
	return programmed, nil
}
