// SPDX-License-Identifier: Apache-2.0

package fake_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/dataplane/fake"
	"github.com/lbproxy/lbproxy/internal/lb"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// harness runs the contract against the fake: a dial is a lookup.
type harness struct {
	dp        *fake.Dataplane
	addrs     dptest.Addresses
	clock     time.Time
	connected bool // UDP sockets connect
}

func newHarness() *harness {
	h := &harness{clock: time.Unix(1_800_000_000, 0), addrs: dptest.Addresses{
		Ports:        [2]uint16{8080, 9090},
		Node:         addrs("192.0.2.1", "192.0.2.2", "2001:db8::1"),
		ServiceVIPs:  prefixes("10.96.0.0/16", "fd00:96::/112"),
		ExternalVIPs: prefixes("198.51.100.0/24", "2001:db8:100::/112"),
		Sources: map[dptest.Origin][]netip.Addr{
			dptest.PodHooked:   addrs("10.244.1.2", "fd00:244:1::2"),
			dptest.PodUnhooked: addrs("10.244.1.3", "fd00:244:1::3"),
			dptest.Node:        addrs("192.0.2.1", "2001:db8::1"),
			dptest.Outside:     addrs("203.0.113.9", "2001:db8:9::9"),
		},
	}}
	for i, list := range [][]netip.Addr{
		addrs("10.244.1.10", "fd00:244:1::10"), addrs("10.244.1.11", "fd00:244:1::11"),
		addrs("10.244.1.12", "fd00:244:1::12"), addrs("10.244.2.10", "fd00:244:2::10"),
	} {
		h.addrs.Backends = append(h.addrs.Backends, dptest.Backend{V4: list[0], V6: list[1], Local: i < 3})
	}
	for _, a := range addrs("203.0.113.100", "2001:db8:9::100") {
		for range 32 {
			h.addrs.Many = append(h.addrs.Many, a)
			a = a.Next()
		}
	}
	self := h.addrs.Backends[0]
	h.addrs.Sources[dptest.Self] = []netip.Addr{self.V4, self.V6}
	return h
}

func (h *harness) Addrs() dptest.Addresses { return h.addrs }

func (h *harness) Supports(dptest.Feature) bool { return true }

func (h *harness) Dataplane(*testing.T) dataplane.Dataplane {
	h.dp = fake.New(fake.Options{
		Nodes: append(addrs("127.0.0.1", "::1"), h.addrs.Node...),
		Local: lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: prefixes("10.244.0.0/16", "fd00:244::/32")},
		Now:   h.Now,
	})
	return h.dp
}

func (h *harness) Reopen(*testing.T) dataplane.Dataplane {
	h.dp = h.dp.Reopen()
	return h.dp
}

func (h *harness) Wait(d time.Duration) { h.clock = h.clock.Add(d) }

func (h *harness) Now() time.Time { return h.clock }

// flow returns f as the fake has it.
func (h *harness) flow(t *testing.T, f dptest.Flow) fake.Flow {
	t.Helper()
	flow := fake.Flow{To: f.To, Proto: f.Proto, Source: f.Source, Socket: f.From == dptest.PodHooked || f.From == dptest.Node}
	for _, a := range h.addrs.Sources[f.From] {
		if !f.Source.IsValid() && lb.FamilyOf(a) == lb.FamilyOf(f.To.Addr()) {
			flow.Source = a
		}
	}
	if !flow.Source.IsValid() {
		t.Fatalf("%s: no source address", f)
	}
	return flow
}

func (h *harness) hold(t *testing.T, f dptest.Flow) (netip.AddrPort, *fake.Conn, fake.Flow) {
	t.Helper()
	flow := h.flow(t, f)
	flow.Connected = h.connected
	v, c := h.dp.Hold(flow)
	if v.Action != fake.Forward {
		t.Fatalf("%s: %s", f, v.Action)
	}
	return v.Backend, c, flow
}

func (h *harness) Open(t *testing.T, f dptest.Flow) dptest.Held {
	be, c, _ := h.hold(t, f)
	return dptest.Held{Backend: be, Close: c.End, Check: func() error {
		if v := c.Send(); v.Action != fake.Forward {
			return fmt.Errorf("to %s: %s", be, v.Action)
		}
		return nil
	}}
}

func (h *harness) OpenFlow(t *testing.T, f dptest.Flow) dptest.HeldFlow {
	be, c, flow := h.hold(t, f)
	return dptest.HeldFlow{
		Backend: be, Connected: flow.Socket && flow.Connected, Close: c.End,
		Again: func(bool) (netip.AddrPort, error) {
			v := c.Send()
			if v.Action != fake.Forward {
				return netip.AddrPort{}, fmt.Errorf("to %s: %s", be, v.Action)
			}
			return v.Backend, nil
		},
	}
}

func (h *harness) Try(t *testing.T, f dptest.Flow) dptest.Outcome {
	out := dptest.Outcome{Backends: map[netip.AddrPort]int{}, Peer: f.To}
	flow := h.flow(t, f)
	for range f.N {
		v := h.dp.Dial(flow)
		verdict := verdictOf(flow, v)
		if out.Verdict != "" && out.Verdict != verdict {
			verdict = dptest.Mixed
		}
		out.Verdict = verdict
		if verdict == dptest.OK {
			out.Backends[v.Backend]++
			out.Seen = append(out.Seen, v.Source)
		}
	}
	return out
}

func verdictOf(f fake.Flow, v fake.Verdict) dptest.Verdict {
	switch v.Action {
	case fake.Refuse:
		return dptest.Refused
	case fake.Discard:
		return dptest.Dropped
	case fake.Pass:
		return dptest.Untouched
	}
	if v.Source == v.Backend.Addr() && !f.Socket {
		return dptest.Dropped // no host takes a packet from itself
	}
	return dptest.OK
}

func TestContract(t *testing.T) { dptest.Run(t, newHarness()) }

func TestContractConnected(t *testing.T) {
	h := newHarness()
	h.connected = true
	dptest.Run(t, h)
}
