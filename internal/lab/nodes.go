// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	maxMore  = 9 // nodes
	nodeBase = 10
)

// MoreNode names one of the nodes of Options.Nodes, from 0 on. Each is like node, with a
// cgroup of its own, a place for pins of its own and pods; there is nothing that leads
// from the others to the addresses of Services through it.
func MoreNode(i int) string { return fmt.Sprintf("node%d", i+3) }

// BPFFS is a directory of a bpffs for what a proxy on this node pins.
func (h *Host) BPFFS() string {
	if h.Name == Node {
		return h.lab.bpffs
	}
	return filepath.Join(h.lab.bpffs, h.Name)
}

// moreNode describes one before it is built.
func (l *Lab) moreNode(i int) (*Host, error) {
	n := byte(i + 3)
	h := &Host{
		Name:  MoreNode(i),
		Addr4: netip.AddrFrom4([4]byte{172, 30, 0, nodeBase + n}),
		Addr6: netip.MustParseAddr(fmt.Sprintf("fd00:30::%d", nodeBase+n)),
		pods4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24),
		pods6: netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", n)),
	}
	cgroup, err := openCgroup(l.cgroup.root, h.Name)
	if err != nil {
		return nil, err
	}
	h.cgroup = cgroup
	l.cgroup.more = append(l.cgroup.more, cgroup)
	return h, nil
}

// buildMore makes n more nodes, and the routes between all nodes.
func (l *Lab) buildMore(n int) error {
	if n < 0 || n > maxMore {
		return fmt.Errorf("%d more nodes: want 0..%d", n, maxMore)
	}
	outside := l.hosts[Outside]
	for i := range n {
		h, err := l.moreNode(i)
		if err != nil {
			return err
		}
		others := []*Host{l.hosts[Node], l.hosts[Node2]}
		for k := range i {
			others = append(others, l.hosts[MoreNode(k)])
		}
		if err := l.attach(h, l.mtu); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
		for _, dst := range []netip.Prefix{default4, default6} {
			if err := h.addRoute(dst, uplink, outside.addrFor(dst), h.addrFor(dst)); err != nil {
				return err
			}
		}
		for _, other := range others {
			if err := other.leadTo(h); err != nil {
				return err
			}
			if err := h.leadTo(other); err != nil {
				return err
			}
		}
		if err := outside.leadTo(h); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(l.bpffs, h.Name), 0o700); err != nil {
			return fmt.Errorf("bpffs: %w", err)
		}
	}
	return nil
}

// leadTo routes the pods of another node to it.
func (h *Host) leadTo(node *Host) error {
	for _, dst := range []netip.Prefix{node.pods4, node.pods6} {
		if err := h.addRoute(dst, uplink, node.addrFor(dst), h.addrFor(dst)); err != nil {
			return err
		}
	}
	return nil
}

// Route leads dst from the host to a neighbour of its eth0.
func (h *Host) Route(dst netip.Prefix, via netip.Addr) error {
	return h.addRoute(dst, uplink, via, noAddr)
}

// AddRange makes every address of an IPv4 prefix one of a pod's own. Only its node knows
// the way there.
func (h *Host) AddRange(p netip.Prefix) error {
	if !h.pod {
		return fmt.Errorf("host %s: only pods can have a range", h.Name)
	}
	lo, err := h.link("lo")
	if err != nil {
		return err
	}
	own := &netlink.Route{
		LinkIndex: lo.Attrs().Index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
		Dst: ipNet(p),
	}
	if err := h.nl.RouteAdd(own); err != nil {
		return fmt.Errorf("host %s: range %s: %w", h.Name, p, err)
	}
	return h.gateway.addRoute(p, h.peer, h.Addr4, noAddr)
}

// Blackhole loses every packet to one of a pod's own addresses, or ends that.
func (h *Host) Blackhole(a netip.Addr, on bool) error {
	hole := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_BLACKHOLE, Dst: ipNet(single(a))}
	var err error
	if on {
		err = h.nl.RouteAdd(hole)
	} else {
		err = h.nl.RouteDel(hole)
	}
	if err != nil {
		return fmt.Errorf("host %s: black hole at %s: %w", h.Name, a, err)
	}
	return nil
}
