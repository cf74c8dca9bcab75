// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// netHarness runs the contract with real packets.
type netHarness struct {
	*labtest.Net
	rig *rig
}

// newNetHarness makes a lab with servers, and UDP sockets that connect or not.
func newNetHarness(t *testing.T, connected bool) *netHarness {
	t.Helper()
	h := &netHarness{Net: labtest.New(t)}
	h.Sockets, h.Connect = true, func(dptest.Flow) bool { return connected }
	h.Lost = h.tellLost
	return h
}

func (h *netHarness) Dataplane(t *testing.T) dataplane.Dataplane {
	return h.open(t, func(o *Options) {
		o.NodeAddrs = h.Lab.Host(lab.Node).Addrs() // as the Node object says
	})
}

// open starts a Dataplane, of which nothing stays behind t.
func (h *netHarness) open(t *testing.T, edit func(*Options)) *Dataplane {
	t.Helper()
	r := &rig{t: t, lab: h.Lab, opts: labOptions(t, h.Lab)}
	edit(&r.opts)
	t.Cleanup(func() {
		if err := h.Lab.Host(lab.Node).Do(func() error {
			_, err := Cleanup(r.opts)
			return err
		}); err != nil {
			t.Error(err)
		}
	})
	r.start()
	h.rig = r
	return r.dp
}

// Reopen ends the agent and starts it again.
func (h *netHarness) Reopen(*testing.T) dataplane.Dataplane {
	h.rig.stop()
	h.rig.start()
	return h.rig.dp
}

// tellLost logs what the kernel knows when an exchange that should be answered
// was not.
func (h *netHarness) tellLost(t *testing.T, _ dptest.Origin, r lab.Result) {
	t.Helper()
	drops, err := h.rig.dp.maps.drops()
	t.Logf("drops %v, %v", drops, err)
	var (
		key lbTuple
		c   lbConn
	)
	it := h.rig.dp.maps.byName[lbMapConns].Iterate()
	for it.Next(&key, &c) {
		src, dst := addrPortOf(key.Saddr, key.Sport), addrPortOf(key.Daddr, key.Dport)
		if src.Port() == r.Local.Port() || dst.Port() == r.Local.Port() || c.Port == swap16(r.Local.Port()) || c.OtherPort == swap16(r.Local.Port()) {
			t.Logf("entry hook %d %s -> %s: %s other port %d flags %d state %d last %d", key.Hook, src, dst,
				addrPortOf(c.Addr, c.Port), swap16(c.OtherPort), c.Flags, c.State, c.Last)
		}
	}
	if err := it.Err(); err != nil {
		t.Logf("entries: %v", err)
	}
}

func (h *netHarness) Supports(f dptest.Feature) bool {
	return f != dptest.FeatureFaults // see TestFull for writes that fail
}

// Open holds a TCP connection. Its end is known to the dataplane a little later
// than the process has closed it: Close waits for that.
func (h *netHarness) Open(t *testing.T, f dptest.Flow) dptest.Held {
	t.Helper()
	live := func() uint64 {
		opened, closed, _ := h.rig.totals()
		return opened - closed
	}
	return h.Net.Open(t, f, func() func() {
		before := live()
		return func() {
			h.rig.within(labtest.Patience, "the end of a connection is counted", func() bool { return live() < before })
		}
	})
}

func TestContract(t *testing.T) {
	dptest.Run(t, newNetHarness(t, true))
}

// TestContractUnconnected runs the rows of UDP again with sockets that do not
// connect, where a process is translated by sendmsg and recvmsg.
func TestContractUnconnected(t *testing.T) {
	dptest.Run(t, udpOnly{newNetHarness(t, false)})
}

type udpOnly struct{ *netHarness }

func (h udpOnly) Supports(f dptest.Feature) bool {
	return f != dptest.FeatureTCP && h.netHarness.Supports(f)
}
