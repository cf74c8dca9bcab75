// SPDX-License-Identifier: Apache-2.0

package flowtest_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/dataplane/fake"
	"github.com/lbproxy/lbproxy/internal/dataplane/flowtest"
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

// harness runs the rows against the fake: a dial is a lookup.
type harness struct {
	dp  *fake.Dataplane
	net flowtest.Network
}

// devices are by which packets come to the node.
var devices = map[dptest.Origin]string{
	dptest.PodUnhooked: "v-client2", dptest.Self: "v-backend1", dptest.Outside: "eth0", dptest.Remote: "eth0",
}

func newHarness() *harness {
	n := flowtest.Network{
		Cluster:      prefixes("10.244.0.0/16", "fd00:244::/32"),
		NodeCIDRs:    prefixes("10.244.1.0/24", "fd00:244:1::/48"),
		Bridge:       "v-client2",
		DevicePrefix: "v-",
		Second: map[dptest.Origin][]netip.Addr{
			dptest.Outside: addrs("203.0.113.77", "2001:db8:9::77"),
			dptest.Node:    addrs("192.0.2.2", "2001:db8::2"),
		},
		Looped: addrs("198.51.100.250", "2001:db8:100::fff0"),
	}
	n.Ports = [2]uint16{8080, 8081}
	n.Node = addrs("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")
	n.ServiceVIPs = prefixes("10.96.0.0/16", "fd00:96::/112")
	n.ExternalVIPs = prefixes("198.51.100.0/24", "2001:db8:100::/112")
	for _, be := range [][]netip.Addr{
		addrs("10.244.1.10", "fd00:244:1::10"), addrs("10.244.1.11", "fd00:244:1::11"),
		addrs("10.244.1.12", "fd00:244:1::12"), addrs("10.244.2.10", "fd00:244:2::10"),
	} {
		n.Backends = append(n.Backends, dptest.Backend{V4: be[0], V6: be[1], Local: len(n.Backends) < 3})
	}
	n.Sources = map[dptest.Origin][]netip.Addr{
		dptest.PodHooked:    addrs("10.244.1.2", "fd00:244:1::2"),
		dptest.PodUnhooked:  addrs("10.244.1.3", "fd00:244:1::3"),
		dptest.Node:         addrs("192.0.2.1", "2001:db8::1"),
		dptest.Outside:      addrs("203.0.113.9", "2001:db8:9::9"),
		dptest.Remote:       addrs("10.244.2.2", "fd00:244:2::2"),
		dptest.Self:         addrs("10.244.1.10", "fd00:244:1::10"),
		flowtest.SelfHooked: addrs("10.244.1.11", "fd00:244:1::11"),
	}
	return &harness{net: n}
}

func (h *harness) Network() flowtest.Network { return h.net }

func (h *harness) Addrs() dptest.Addresses { return h.net.Addresses }

func (h *harness) Supports(dptest.Feature) bool { return true }

func (h *harness) Dataplane(t *testing.T) dataplane.Dataplane {
	return h.Configure(t, flowtest.Setup{})
}

func (h *harness) Configure(_ *testing.T, s flowtest.Setup) dataplane.Dataplane {
	h.dp = fake.New(fake.Options{
		Nodes: append(addrs("127.0.0.1", "::1"), h.net.Node...), NodePorts: s.NodePorts, Local: s.Local,
	})
	h.dp.SetNode(s.Node)
	return h.dp
}

func (h *harness) flow(f dptest.Flow) fake.Flow {
	flow := fake.Flow{To: f.To, Proto: f.Proto, Source: f.Source, Device: devices[f.From]}
	flow.Socket = slices.Contains([]dptest.Origin{dptest.PodHooked, dptest.Node, flowtest.SelfHooked}, f.From)
	for _, a := range h.net.Sources[f.From] {
		if !flow.Source.IsValid() && lb.FamilyOf(a) == lb.FamilyOf(f.To.Addr()) {
			flow.Source = a
		}
	}
	return flow
}

func (h *harness) Dial(_ context.Context, f dptest.Flow) (dptest.Outcome, error) {
	out := dptest.Outcome{Backends: map[netip.AddrPort]int{}, Peer: f.To}
	flow := h.flow(f)
	if !flow.Source.IsValid() {
		return out, fmt.Errorf("%s: no source address", f)
	}
	for range f.N {
		v := h.dp.Dial(flow)
		verdict := map[fake.Action]dptest.Verdict{
			fake.Forward: dptest.OK, fake.Refuse: dptest.Refused, fake.Discard: dptest.Dropped, fake.Pass: dptest.Untouched,
		}[v.Action]
		if out.Verdict != "" && out.Verdict != verdict {
			verdict = dptest.Mixed
		}
		out.Verdict = verdict
		if verdict == dptest.OK {
			out.Backends[v.Backend]++
			out.Seen = append(out.Seen, v.Source)
		}
	}
	return out, nil
}

func (h *harness) Try(t *testing.T, f dptest.Flow) dptest.Outcome {
	out, err := h.Dial(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (h *harness) hold(t *testing.T, f dptest.Flow) (netip.AddrPort, *fake.Conn) {
	t.Helper()
	v, c := h.dp.Hold(h.flow(f))
	if v.Action != fake.Forward {
		t.Fatalf("%s: %s", f, v.Action)
	}
	return v.Backend, c
}

func (h *harness) Open(t *testing.T, f dptest.Flow) dptest.Held {
	be, c := h.hold(t, f)
	return dptest.Held{Backend: be, Close: c.End, Check: func() error {
		if v := c.Send(); v.Action != fake.Forward {
			return fmt.Errorf("to %s: %s", be, v.Action)
		}
		return nil
	}}
}

func (h *harness) OpenFlow(t *testing.T, f dptest.Flow) dptest.HeldFlow {
	be, c := h.hold(t, f)
	return dptest.HeldFlow{Backend: be, Close: c.End, Again: func(bool) (netip.AddrPort, error) {
		v := c.Send()
		if v.Action != fake.Forward {
			return netip.AddrPort{}, fmt.Errorf("to %s: %s", be, v.Action)
		}
		return v.Backend, nil
	}}
}

func TestFlows(t *testing.T) {
	began := time.Now()
	flowtest.Run(t, newHarness())
	t.Logf("took %v", time.Since(began))
}

// TestTable checks the table itself: it is large, and names are unique and stable
// enough to be cited.
func TestTable(t *testing.T) {
	const least = 250
	rows, rules := 0, map[string]bool{}
	for _, r := range flowtest.Rules() {
		if rules[r.Name] {
			t.Errorf("two rules %q", r.Name)
		}
		rules[r.Name] = true
		names, targets := map[string]bool{}, map[string]string{}
		for _, row := range r.Rows {
			rows++
			if names[row.Name] {
				t.Errorf("rule %q: two rows %q", r.Name, row.Name)
			}
			names[row.Name] = true
			flow := row.From + " -> " + row.To + " " + row.On
			if other := targets[flow]; other != "" {
				t.Errorf("rule %q: rows %q and %q are the same flow", r.Name, other, row.Name)
			}
			targets[flow] = row.Name
		}
	}
	if rows < least {
		t.Errorf("%d rows, want %d or more", rows, least)
	}
	t.Logf("%d rules, %d rows", len(rules), rows)
}

// TestPacketRows checks that what differs without a socket path are rows that exist, and
// that each differs.
func TestPacketRows(t *testing.T) {
	rows := map[[2]string]flowtest.Row{}
	for _, r := range flowtest.Rules() {
		for _, row := range r.Rows {
			rows[[2]string{r.Name, row.Name}] = row
		}
	}
	seen := map[[2]string]bool{}
	for _, p := range flowtest.PacketRows() {
		key := [2]string{p.Rule, p.Row}
		row, ok := rows[key]
		if !ok || seen[key] {
			t.Errorf("rule %q, row %q: exists %t, named twice %t", p.Rule, p.Row, ok, seen[key])
		}
		seen[key] = true
		if p.Why == "" || p.To == "" && p.Gets == "" && p.Sees == "" || p.To == row.To || p.Gets == row.Gets || p.Sees != "" && p.Sees == row.Sees {
			t.Errorf("rule %q, row %q: %+v does not say what differs from %+v, and why", p.Rule, p.Row, p, row)
		}
	}
}
