// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// The tables that the kernel fills by itself, each of them full. Of those of the agent
// see TestFull and TestFullOfRanges.

// dropped returns how often there was a reason to drop.
func (r *rig) dropped(reason string) uint64 {
	r.t.Helper()
	st, err := r.dp.Stats()
	if err != nil {
		r.t.Fatal(err)
	}
	n, ok := st.Drops[reason]
	if !ok {
		r.t.Fatalf("no drops are counted as %s", reason)
	}
	return n
}

// TestFullOfConnections has more connections of the packet path than there is room for:
// those that are there go on, others are not made, sockets do not notice, and when some
// have ended there is room again.
func TestFullOfConnections(t *testing.T) {
	const room = 8 // four entries for each that is masqueraded: two connections
	r := newRig(t, func(o *Options) { o.Sizes.Conns = room })
	r.serveVIPs(lb.TCP, "backend1")
	held := []*lab.Conn{r.open(lab.Outside, lab.TCP, vips[lb.IPv4]), r.open(lab.Outside, lab.TCP, vips[lb.IPv6])}
	inside := r.open("client1", lab.TCP, vips[lb.IPv4])
	const reason = "connection_table_full"
	before := r.dropped(reason)
	got, _ := r.dial(lab.Outside, lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4]), Timeout: silence}, 3)
	if got["backend1"] != 0 {
		t.Errorf("connections in a full table: %v, want none", got)
	}
	if r.dropped(reason) == before {
		t.Errorf("nothing was counted as %s", reason)
	}
	for i, c := range append(held, inside) {
		r.ping(c, fmt.Sprintf("connection %d, when the table is full", i))
	}
	r.answersFrom("client1", lab.TCP, vips[lb.IPv4], lab.OK)
	if err := held[1].Close(t.Context(), "rst"); err != nil {
		t.Fatal(err)
	}
	r.eventually("there is room again", func() bool {
		r.sweepLater(2 * time.Minute) // after its end; the others are established
		got, _ := r.dial(lab.Outside, lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4]), Timeout: silence}, 1)
		return got["backend1"] == 1
	})
	r.ping(held[0], "afterwards")
	r.ping(inside, "afterwards")
	if found := r.audit(nil); len(found) > 0 {
		t.Errorf("found %q", found)
	}
}

// TestFullOfFlows has more UDP sockets that are not connected than there is room for.
func TestFullOfFlows(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Sizes.Flows = 4 }) // two flows
	vip := netip.MustParseAddrPort(vips[lb.IPv4])
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.svc("web", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, "backend1"), frontend(lb.ClusterIP, lb.UDP, vip.String(), lb.MasqueradeOffCluster))}})
	const reason = "udp_flow_table_full"
	var sockets []*lab.UDPSocket
	open := func(timeout time.Duration) *lab.UDPSocket {
		u, err := r.lab.Host("client1").OpenUDP(t.Context(), lab.Request{To: vip, Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for range 2 {
		u := open(patience)
		if res := u.Exchange(t.Context(), vip, nil); res.Kind != lab.OK {
			t.Fatal(res.Err)
		}
		sockets = append(sockets, u)
	}
	extra := open(silence)
	if res := extra.Exchange(t.Context(), vip, nil); res.Kind == lab.OK || r.dropped(reason) == 0 {
		t.Errorf("a flow too many: %s, %d drops; want no answer, and drops counted", res.Kind, r.dropped(reason))
	}
	for i, u := range sockets {
		if res := u.Exchange(t.Context(), vip, nil); res.Kind != lab.OK {
			t.Errorf("flow %d when the table is full: %s", i, res.Err)
		}
	}
	if err := sockets[1].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.eventually("there is room again", func() bool { return extra.Exchange(t.Context(), vip, nil).Kind == lab.OK })
	if res := sockets[0].Exchange(t.Context(), vip, nil); res.Kind != lab.OK {
		t.Errorf("afterwards: %s", res.Err)
	}
}

// TestFullOfNodeAddresses has more addresses at the node than there is room for, as those
// of the device that kube-proxy's ipvs mode leaves: the ones that the Node object names
// serve NodePorts, and connections go on.
func TestFullOfNodeAddresses(t *testing.T) {
	r := newRig(t, nil)
	const port = "30080"
	at := netip.AddrPortFrom(lab.NodeAddr4, 30080)
	world := dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.svc("web", lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, "backend1"), frontend(lb.NodePort, lb.TCP, "0.0.0.0:"+port, lb.MasqueradeAlways))}}
	serve := func() {
		t.Helper()
		r.dp.SetNode(lb.Node{Known: true, Addrs: []netip.Addr{lab.NodeAddr4, lab.NodeAddr6}})
		r.sync(world)
	}
	serve()
	held := r.open(lab.Outside, lab.TCP, at.String())
	room := int(r.dp.maps.byName[lbMapNodeAddrs].MaxEntries())
	r.stop() // or each of the many addresses would be looked at
	r.onNode(func() error { return manyAddresses(3 * room) })
	full := func() {
		t.Helper()
		r.start()
		serve()
		if n := r.count(r.dp.maps.byName[lbMapNodeAddrs]); n != room {
			t.Errorf("%d addresses are stored, want %d", n, room)
		}
		r.answersFrom(lab.Outside, lab.TCP, at.String(), lab.OK)
	}
	full()
	r.ping(held, "when it is full")
	r.stop()
	r.onNode(func() error { _, err := Cleanup(r.opts); return err })
	full()
	r.onNode(func() error { return removeDevice(ipvsDevice) })
	r.eventually("there is room again", func() bool { return r.count(r.dp.maps.byName[lbMapNodeAddrs]) < 100 })
	r.answersFrom(lab.Outside, lab.TCP, at.String(), lab.OK)
}

const ipvsDevice = "kube-ipvs0"

// manyAddresses makes a device with n addresses.
func manyAddresses(n int) error {
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: ipvsDevice}, PeerName: "peer"} // a dummy needs a module
	if err := netlink.LinkAdd(l); err != nil {
		return err
	}
	for i := range n {
		a := &net.IPNet{IP: net.IPv4(10, 99, byte(i>>8), byte(i)), Mask: net.CIDRMask(32, 32)}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: a}); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return nil
}

func removeDevice(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}
