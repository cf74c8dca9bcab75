// SPDX-License-Identifier: Apache-2.0

// Package flowtest is the table of packet flows: who sends, from where, to what, who
// answers, and whom that backend sees. It says what kube-proxy promises, from
// Kubernetes objects to packets: each row starts from Services and EndpointSlices,
// which take the way through endpoints and agent that they take in the product. The
// same rows run on the fake and on every real dataplane, which brings a Harness.
package flowtest

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// SelfHooked is Addresses.Backends[1], translated at connect().
const SelfHooked dptest.Origin = "backend 1"

// Network is what the rows need to know of a Harness's network.
type Network struct {
	dptest.Addresses                                // Backends are three local ones and a remote one
	Cluster          []netip.Prefix                 // the ranges of all pods
	NodeCIDRs        []netip.Prefix                 // the ranges of the node's pods
	Bridge           string                         // by which packets of PodUnhooked come, and of nobody else's
	DevicePrefix     string                         // of the devices of all pods of the node, and of no other
	Second           map[dptest.Origin][]netip.Addr // a second address of each family, where an origin has one
	Looped           []netip.Addr                   // of ExternalVIPs, one of each family, that Outside has
}

// Setup is how a node is configured, as far as its dataplane knows it.
type Setup struct {
	Local     lb.LocalDetector
	NodePorts lb.NodePortAddresses
	Node      lb.Node
}

// Harness connects the rows with a dataplane and a network.
type Harness interface {
	dptest.Harness
	// Network describes the network. It is always the same.
	Network() Network
	// Configure returns an empty Dataplane of a node that is set up so, which ends
	// with t. There is one at a time.
	Configure(t *testing.T, s Setup) dataplane.Dataplane
	// Dial makes the attempts of f, one after the other. It is called by several
	// goroutines at a time. UDP sockets of processes that are translated at connect()
	// are connected over IPv6, and not over IPv4: that takes two ways.
	Dial(ctx context.Context, f dptest.Flow) (dptest.Outcome, error)
}

// Run runs all rows. Those with the same Config share a Dataplane.
func Run(t *testing.T, h Harness) {
	var configs []*Config
	for _, r := range Rules() {
		if !slices.Contains(configs, r.config()) {
			configs = append(configs, r.config())
		}
	}
	for _, c := range configs {
		t.Run(c.Name, func(t *testing.T) { runConfig(t, h, c) })
	}
	t.Run("transitions", func(t *testing.T) { runTransitions(t, h) })
}

// RunPlain runs the rows of the plain configuration, which are most.
func RunPlain(t *testing.T, h Harness) { runConfig(t, h, &plain) }

// runConfig programs the Services of all rules of a Config at once, dials all flows,
// and then tells of each row what became of it.
func runConfig(t *testing.T, h Harness, c *Config) {
	n := h.Network()
	w := newWorld(&n, c)
	for i, r := range Rules() {
		if r.config() == c {
			w.add(t, i, &r)
		}
	}
	dp := h.Configure(t, w.setup())
	w.program(t, dp)
	cases := w.cases(t, h)
	dialAll(t.Context(), h, cases)
	for _, r := range Rules() {
		if r.config() != c {
			continue
		}
		t.Run(r.Name, func(t *testing.T) {
			for _, row := range r.Rows {
				t.Run(row.Name, func(t *testing.T) { report(t, h, &n, cases, r.Name, row.Name) })
			}
		})
	}
}

// report tells of the cases of one row.
func report(t *testing.T, h Harness, n *Network, cases []*flowCase, rule, row string) {
	t.Helper()
	ran := 0
	for _, c := range cases {
		if c.rule.Name != rule || c.row.Name != row {
			continue
		}
		ran++
		t.Run(c.proto.String()+" "+c.fam.String(), func(t *testing.T) {
			if c.lacks != "" {
				t.Skipf("the harness does not support: %s", c.lacks)
			}
			c.check(t, h, n)
		})
	}
	if ran == 0 {
		t.Error("the row has no case")
	}
}
