package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Names of the hosts that every lab has.
const (
	Node    = "node"
	Node2   = "node2"
	Outside = "outside"
)

// The fixed addresses of a lab.
var (
	NodeAddr4    = netip.MustParseAddr("172.30.0.11")
	NodeAddr6    = netip.MustParseAddr("fd00:30::11")
	NodeSecond4  = netip.MustParseAddr("172.30.1.11") // the node's second address, also on eth0
	NodeSecond6  = netip.MustParseAddr("fd00:30:1::11")
	Node2Addr4   = netip.MustParseAddr("172.30.0.12")
	Node2Addr6   = netip.MustParseAddr("fd00:30::12")
	OutsideAddr4 = netip.MustParseAddr("172.30.0.1")
	OutsideAddr6 = netip.MustParseAddr("fd00:30::1")

	NodePods4    = netip.MustParsePrefix("10.244.1.0/24")
	NodePods6    = netip.MustParsePrefix("fd00:10:244:1::/64")
	Node2Pods4   = netip.MustParsePrefix("10.244.2.0/24")
	Node2Pods6   = netip.MustParsePrefix("fd00:10:244:2::/64")
	ClusterPods4 = netip.MustParsePrefix("10.244.0.0/16")
	ClusterPods6 = netip.MustParsePrefix("fd00:10:244::/48")

	ServiceVIPs4 = netip.MustParsePrefix("10.96.0.0/16")
	ServiceVIPs6 = netip.MustParsePrefix("fd00:10:96::/112")
	BalanceVIPs4 = netip.MustParsePrefix("172.32.0.0/24") // load balancer and external IPs
	BalanceVIPs6 = netip.MustParsePrefix("fd00:32::/112")
)

var (
	segmentBits4, segmentBits6 = 24, 64
	podGateway4                = netip.MustParseAddr("169.254.1.1")
	podGateway6                = netip.MustParseAddr("fe80::1")
	default4                   = netip.MustParsePrefix("0.0.0.0/0")
	default6                   = netip.MustParsePrefix("::/0")
	noAddr                     netip.Addr
)

const (
	uplink = "eth0" // every host's own device
	bridge = "br0"  // in the fabric
)

// buildFabric makes the segment that node, node2 and outside share.
func (l *Lab) buildFabric() error {
	fabric, err := newSpace(l.name+"-fabric", false)
	if err != nil {
		return err
	}
	l.fabric = fabric
	snooping := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}, MulticastSnooping: &snooping}
	if err := fabric.nl.LinkAdd(br); err != nil {
		return fmt.Errorf("%s: bridge: %w", fabric.nsName, err)
	}
	return fabric.up(bridge)
}

// buildNodes makes the hosts on the segment and the routes between them. The
// node's default route ends at outside, which forwards nothing: traffic that no
// one translates is lost there, as on a real node, and stays in the lab.
func (l *Lab) buildNodes(mtu int) error {
	for _, h := range []*Host{
		{Name: Outside, Addr4: OutsideAddr4, Addr6: OutsideAddr6, cgroup: l.cgroup.other},
		{Name: Node2, Addr4: Node2Addr4, Addr6: Node2Addr6, pods4: Node2Pods4, pods6: Node2Pods6, cgroup: l.cgroup.other},
		{Name: Node, Addr4: NodeAddr4, Addr6: NodeAddr6, pods4: NodePods4, pods6: NodePods6, cgroup: l.cgroup.hooked},
	} {
		if err := l.attach(h, mtu); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
	}
	node, node2, outside := l.hosts[Node], l.hosts[Node2], l.hosts[Outside]
	for _, a := range []netip.Addr{NodeSecond4, NodeSecond6} {
		if err := node.addAddr(uplink, single(a), netlink.SCOPE_UNIVERSE); err != nil {
			return err
		}
	}
	toNode := []netip.Prefix{single(NodeSecond4), single(NodeSecond6), NodePods4, NodePods6}
	toVIPs := append([]netip.Prefix{ServiceVIPs4, ServiceVIPs6, BalanceVIPs4, BalanceVIPs6}, toNode...)
	viaNode := append([]netip.Prefix{ClusterPods4, ClusterPods6}, toVIPs...)
	for _, r := range []struct {
		from, via *Host
		dst       []netip.Prefix
	}{
		{node, outside, []netip.Prefix{default4, default6}},
		{node, node2, []netip.Prefix{Node2Pods4, Node2Pods6}},
		{node2, node, toVIPs}, // node2 has no proxy of its own: its pods use node's
		{outside, node, viaNode},
		{outside, node2, []netip.Prefix{Node2Pods4, Node2Pods6}},
	} {
		for _, dst := range r.dst {
			if err := r.from.addRoute(dst, uplink, r.via.addrFor(dst), r.from.addrFor(dst)); err != nil {
				return err
			}
		}
	}
	return nil
}

// attach gives h a namespace and connects it to the fabric.
func (l *Lab) attach(h *Host, mtu int) error {
	h.gateway, h.peer = l.fabric, "p-"+h.Name
	if err := l.addHost(h, mtu); err != nil {
		return err
	}
	port, err := l.fabric.link(h.peer)
	if err != nil {
		return err
	}
	br, err := l.fabric.link(bridge)
	if err != nil {
		return err
	}
	if err := l.fabric.nl.LinkSetMaster(port, br); err != nil {
		return fmt.Errorf("bridge port %s: %w", h.peer, err)
	}
	for _, p := range []netip.Prefix{
		netip.PrefixFrom(h.Addr4, segmentBits4), netip.PrefixFrom(h.Addr6, segmentBits6),
	} {
		if err := h.addAddr(uplink, p, netlink.SCOPE_UNIVERSE); err != nil {
			return err
		}
	}
	return nil
}

// buildPod gives h a namespace and connects it to its node, which routes h's
// addresses to the veth, and is h's default gateway under a link-local address.
func (l *Lab) buildPod(h, node *Host, mtu int) error {
	h.gateway, h.peer = node.space, "v-"+h.Name
	if err := l.addHost(h, mtu); err != nil {
		return err
	}
	for _, f := range []struct {
		pod, gateway, node netip.Addr
		gatewayBits        int
		all                netip.Prefix
	}{
		{h.Addr4, podGateway4, node.Addr4, 32, default4},
		{h.Addr6, podGateway6, node.Addr6, 64, default6},
	} {
		gateway := netip.PrefixFrom(f.gateway, f.gatewayBits)
		if err := node.addAddr(h.peer, gateway, netlink.SCOPE_LINK); err != nil {
			return err
		}
		if err := node.addRoute(single(f.pod), h.peer, noAddr, f.node); err != nil {
			return err
		}
		if err := h.addAddr(uplink, single(f.pod), netlink.SCOPE_UNIVERSE); err != nil {
			return err
		}
		if err := h.addRoute(f.all, uplink, f.gateway, f.pod); err != nil {
			return err
		}
	}
	return nil
}

// addHost makes h's namespace and the veth from h.gateway, both ends up, and
// registers h, so that Close also finds a host that is only half built.
func (l *Lab) addHost(h *Host, mtu int) error {
	s, err := newSpace(l.name+"-"+h.Name, h.pods4.IsValid())
	if err != nil {
		return err
	}
	h.space, h.lab = s, l
	l.hosts[h.Name] = h
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: h.peer, MTU: mtu},
		PeerName:      uplink,
		PeerMTU:       uint32(mtu),
		PeerNamespace: netlink.NsFd(int(s.ns)),
	}
	if err := h.gateway.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s: %w", h.peer, err)
	}
	if err := h.gateway.up(h.peer); err != nil {
		return err
	}
	if err := h.up(uplink); err != nil {
		return err
	}
	if err := h.gateway.awaitUp(h.peer); err != nil {
		return err
	}
	return h.awaitUp(uplink)
}
