// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestSyncEndsEarlySockets: what connected before a Service existed, or before its first
// endpoint came to this node, is ended by the Sync that brings it; what was there before
// the first full Sync is left to who served it.
func TestSyncEndsEarlySockets(t *testing.T) {
	r := newRig(t, nil)
	var before int
	vip := netip.MustParseAddrPort("10.96.0.60:53")
	r.onNode(func() (err error) { before, err = dialFD(vip, unix.SOCK_DGRAM); return err })
	defer unix.Close(before)
	own := r.svc("own", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, "backend1"),
		frontend(lb.ClusterIP, lb.UDP, "10.96.0.60:53", lb.MasqueradeOffCluster))
	silent := r.svc("silent", lb.IPv4, lb.UDP, "random", nil,
		frontend(lb.ClusterIP, lb.UDP, "10.96.0.61:53", lb.MasqueradeOffCluster))
	silent.Cluster.Empty = lb.Drop
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{own, silent}})
	early := r.startClient(lab.Node, "early", staleVIP4, 2)
	early.ready()
	waiting := r.startClient(lab.Node, "early", "10.96.0.61:53", 2)
	waiting.ready()
	silent = r.svc("silent", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, "backend1"), silent.Frontends...)
	r.sync(dataplane.Delta{Put: []*dataplane.Service{r.dns("backend1")[0], silent}})
	early.next()
	waiting.next()
	peerIs(t, "from before the first full Sync", before, vip)
}
