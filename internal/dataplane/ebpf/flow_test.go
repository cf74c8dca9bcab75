// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/dataplane/flowtest"
)

// flowHarness runs the table of packet flows. UDP sockets on the socket path alternate.
type flowHarness struct{ *netHarness }

func newFlowHarness(t *testing.T) *flowHarness {
	t.Helper()
	h := &flowHarness{newNetHarness(t, true)}
	h.Connect = func(f dptest.Flow) bool { return f.To.Addr().Is6() }
	return h
}

func (h *flowHarness) Configure(t *testing.T, s flowtest.Setup) dataplane.Dataplane {
	dp := h.open(t, func(o *Options) { o.Local, o.NodePorts = s.Local, s.NodePorts })
	dp.SetNode(s.Node)
	h.rig.eventually("the Node is taken over", func() bool { return h.knows(t, s) })
	return dp
}

// knows tells whether the kernel has what follows from the Node.
func (h *flowHarness) knows(t *testing.T, s flowtest.Setup) bool {
	t.Helper()
	maps := h.rig.dp.maps.byName
	ranges := 0
	var (
		p lbPrefix
		v uint32
	)
	it := maps[lbMapPodRanges].Iterate()
	for it.Next(&p, &v) {
		ranges++
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	ok := ranges == len(s.Local.PodRanges(s.Node))
	for _, a := range h.Network().Node {
		has := maps[lbMapNodeAddrs].Lookup(addrOf(a), &v) == nil
		ok = ok && has == s.NodePorts.Serves(a, s.Node)
	}
	return ok
}

func (h *flowHarness) Dataplane(t *testing.T) dataplane.Dataplane {
	return h.Configure(t, flowtest.Setup{Local: podRanges()})
}

func TestFlows(t *testing.T) {
	flowtest.Run(t, newFlowHarness(t))
}
