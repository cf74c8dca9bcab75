// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// In a world that is served, one pod of the node has the addresses of all endpoints of
// all Services, so that any of them can be dialed. Another pod and a host outside of
// the cluster dial.
const (
	clientPod = "client"
	serverPod = "server"
)

var (
	clientAddr = netip.MustParseAddr("10.144.0.2") // in podRange, as kube-proxy has to think
	serverAddr = netip.MustParseAddr("10.144.0.3")
	endpoints  = []netip.Prefix{ // the addresses from firstPod and firstNew on
		netip.MustParsePrefix("10.128.0.0/12"), netip.MustParsePrefix("10.200.0.0/16"),
	}
)

// pods are those of a place.
func (w *world) pods() []lab.PodSpec {
	if !w.served {
		return []lab.PodSpec{}
	}
	return []lab.PodSpec{{Name: clientPod, Addr4: clientAddr}, {Name: serverPod, Addr4: serverAddr}}
}

// serve leads the addresses of endpoints to the pod that has them.
func (p *place) serve() error {
	server := p.lab.Host(serverPod)
	for _, step := range []struct {
		at  *lab.Host
		dev string
		via netip.Addr // not valid: the addresses are the host's own
	}{
		{server, "lo", netip.Addr{}},
		{p.lab.Host(lab.Node), server.Device(), serverAddr},
		{p.lab.Host(lab.Outside), "eth0", lab.NodeAddr4},
	} {
		err := step.at.Do(func() error { return routes(step.dev, step.via) })
		if err != nil {
			return fmt.Errorf("host %s: %w", step.at.Name, err)
		}
	}
	return nil
}

// track gives the node a rule in table nat that nothing matches.
func (p *place) track(ctx context.Context) error {
	node := p.lab.Host(lab.Node)
	cmd := node.Command(ctx, "iptables", "-t", "nat", "-A", "PREROUTING", "-d", "192.0.2.1",
		"-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT") // the match is what makes the kernel track
	if err := node.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w", cmd, err)
	}
	return nil
}

// routes leads the addresses of endpoints to a neighbour, in the network namespace of
// the calling thread.
func routes(dev string, via netip.Addr) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("link %s: %w", dev, err)
	}
	for _, dst := range endpoints {
		r := &netlink.Route{
			LinkIndex: l.Attrs().Index,
			Dst:       &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), 32)},
		}
		if via.IsValid() {
			r.Gw = via.AsSlice()
			r.SetFlag(netlink.FLAG_ONLINK)
		} else {
			const local = 255 // the kernel's RT_TABLE_LOCAL and RTN_LOCAL
			r.Table, r.Type, r.Scope = local, 2, netlink.SCOPE_HOST
		}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("route %s dev %s: %w", dst, dev, err)
		}
	}
	return nil
}
