// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/flowtest"
)

// flowHarness runs the table of packet flows.
type flowHarness struct{ *netHarness }

func (h flowHarness) Configure(t *testing.T, s flowtest.Setup) dataplane.Dataplane {
	h.rig = newRig(t, h.Net, h.backend, func(o *Options) { o.Local, o.NodePorts = s.Local, s.NodePorts })
	h.rig.dp.SetNode(s.Node)
	return h.rig.dp
}

func TestFlows(t *testing.T) {
	t.Parallel()
	flowtest.Run(t, flowHarness{newNetHarness(t, "nft")})
}

// TestFlowsLegacy runs it with the other backend.
func TestFlowsLegacy(t *testing.T) {
	t.Parallel()
	flowtest.Run(t, flowHarness{newNetHarness(t, "legacy")})
}
