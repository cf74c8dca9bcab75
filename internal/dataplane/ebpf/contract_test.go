// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// How long a caller waits for an answer: for one that should not come, and for
// one that should, on a machine that may be emulated and busy.
const (
	silence  = 400 * time.Millisecond
	patience = 10 * time.Second
)

// netHarness runs the contract with real packets.
type netHarness struct {
	lab       *lab.Lab
	rig       *rig
	connected bool // UDP sockets connect
	port      uint16
}

var contractBackends = []string{"backend1", "backend2", "backend3", "remote1"}

// originHosts are the lab's hosts for the contract's origins. backend1 is not
// hooked, so that it meets itself on the packet path.
var originHosts = map[dptest.Origin]string{
	dptest.PodHooked:   "client1",
	dptest.PodUnhooked: "client2",
	dptest.Node:        lab.Node,
	dptest.Outside:     lab.Outside,
	dptest.Self:        "backend1",
}

func contractPods() []lab.PodSpec {
	pods := lab.DefaultPods()
	for i := range pods {
		if pods[i].Name == "backend1" {
			pods[i].Unhooked = true
		}
	}
	return pods
}

var contractPorts = [2]uint16{backendPort, 8081}

// newNetHarness makes a lab with servers.
func newNetHarness(t *testing.T, connected bool) *netHarness {
	t.Helper()
	l := newLab(t, lab.Options{Pods: contractPods()})
	for _, name := range contractBackends {
		for _, port := range contractPorts {
			serve(t, l.Host(name), port)
		}
	}
	return &netHarness{lab: l, connected: connected}
}

func (h *netHarness) Dataplane(t *testing.T) dataplane.Dataplane {
	r := &rig{t: t, lab: h.lab, opts: labOptions(t, h.lab)}
	t.Cleanup(func() {
		r.stop()
		if err := h.lab.Host(lab.Node).Do(func() error {
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

// tellLost logs what the kernel knows when an exchange that should be answered
// was not.
func (h *netHarness) tellLost(t *testing.T, from dptest.Origin, r lab.Result) {
	t.Helper()
	t.Logf("lost, from %s %s after %v: %s", from, r.Local, r.Took, r.Err)
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

func (h *netHarness) Addrs() dptest.Addresses {
	a := dptest.Addresses{
		Ports:        contractPorts,
		Node:         h.lab.Host(lab.Node).Addrs(),
		ServiceVIPs:  []netip.Prefix{lab.ServiceVIPs4, lab.ServiceVIPs6},
		ExternalVIPs: []netip.Prefix{lab.BalanceVIPs4, lab.BalanceVIPs6},
		Sources:      map[dptest.Origin][]netip.Addr{},
	}
	for _, name := range contractBackends {
		b := h.lab.Host(name)
		a.Backends = append(a.Backends, dptest.Backend{V4: b.Addr4, V6: b.Addr6, Local: name != "remote1"})
	}
	for o, name := range originHosts {
		a.Sources[o] = h.lab.Host(name).Addrs()
	}
	return a
}

func (h *netHarness) Supports(f dptest.Feature) bool {
	return f != dptest.FeatureFaults // see TestFull for writes that fail
}

func (h *netHarness) Try(t *testing.T, f dptest.Flow) dptest.Outcome {
	t.Helper()
	req := lab.Request{Proto: lab.TCP, To: f.To, Timeout: patience}
	if f.Silence {
		req.Timeout = silence
	}
	if f.Proto == lb.UDP {
		req.Proto, req.Connected = lab.UDP, h.connected || f.From != dptest.PodHooked && f.From != dptest.Node
	}
	rs := h.dial(t, originHosts[f.From], req, f.N)
	out := dptest.Outcome{Backends: map[netip.AddrPort]int{}}
	for i, r := range rs {
		v := verdictOf(t, r)
		if i > 0 && v != out.Verdict {
			v = dptest.Mixed
		}
		out.Verdict = v
		if r.Kind != lab.OK && r.Kind != lab.Refused && !f.Silence {
			h.tellLost(t, f.From, r)
		}
		if r.Kind == lab.OK {
			out.Backends[r.ServerLocal]++
			out.Seen = append(out.Seen, r.Seen.Addr())
			out.Peer = r.Peer
		}
	}
	return out
}

// dial makes n exchanges. UDP gets a source port of its own for each: one that is
// used again within the time-out continues its flow, as it should.
func (h *netHarness) dial(t *testing.T, host string, req lab.Request, n int) []lab.Result {
	t.Helper()
	if req.Proto == lab.TCP || req.To.Addr().IsLoopback() {
		rs, err := h.lab.Host(host).DialMany(t.Context(), req, n)
		if err != nil {
			t.Fatal(err)
		}
		return rs
	}
	addr := h.lab.Host(host).Addr4
	if req.To.Addr().Is6() {
		addr = h.lab.Host(host).Addr6
	}
	var rs []lab.Result
	for range n {
		req.From = netip.AddrPortFrom(addr, 61000+h.port%4500) // above the ephemeral range; masquerading is below
		h.port++
		rs = append(rs, h.lab.Host(host).Dial(t.Context(), req))
	}
	return rs
}

func verdictOf(t *testing.T, r lab.Result) dptest.Verdict {
	t.Helper()
	switch r.Kind {
	case lab.OK:
		return dptest.OK
	case lab.Refused:
		return dptest.Refused
	case lab.Timeout, lab.Unreachable:
		return dptest.Dropped
	}
	t.Fatalf("dial: %s", r.Err)
	return ""
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
