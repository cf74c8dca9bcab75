// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/node"
)

// arm is a program with its options.
type arm struct {
	node.Proxy
	name  string
	pause time.Duration
	// pause between changes is longer than what the program holds changes back for
}

// ebpf tells whether the arm is lbproxy without rules.
func (a arm) ebpf() bool { return a.Mode == "" && a.Dataplane != ruled }

// ruled is the dataplane of lbproxy, and the mode of kube-proxy, of rules.
const ruled = "iptables"

// arms are what is compared, lbproxy first.
func arms(lbproxy, kubeProxy string) []arm {
	const short, long = 15 * time.Millisecond, 1100 * time.Millisecond
	all := []arm{
		{node.Proxy{Path: lbproxy, Dataplane: "ebpf"}, "lbproxy", short},
		{node.Proxy{Path: lbproxy, Dataplane: ruled}, "lbproxy iptables", short},
	}
	for _, mode := range []string{"nftables", "iptables"} {
		all = append(all,
			arm{node.Proxy{Path: kubeProxy, Mode: mode, MinSync: "1s"}, mode + " 1s", long},
			arm{node.Proxy{Path: kubeProxy, Mode: mode, MinSync: "0s"}, mode + " 0s", short})
	}
	return all
}

// launch starts the program and returns when it had programmed everything.
func (a arm) launch(ctx context.Context, p *place, limit time.Duration) (programmed time.Time, err error) {
	a.Pods = podRange
	if p.world.huge() {
		a.Backends = 524288
	}
	return a.Launch(ctx, p.Node, limit)
}

// detector returns what sees changes arrive in the kernel.
func (a arm) detector(p *place) (detector, error) {
	switch {
	case a.ebpf():
		return found(newPoolWords(p))
	case a.Backend == node.Legacy:
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
