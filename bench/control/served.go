// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"

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
	pods := []lab.PodSpec{}
	for i := range w.holders {
		pods = append(pods, lab.PodSpec{Name: holderName(i)})
	}
	if !w.served {
		return pods
	}
	return append(pods, []lab.PodSpec{{Name: clientPod, Addr4: clientAddr}, {Name: serverPod, Addr4: serverAddr}}...)
}

// serve leads the addresses of endpoints to the pod that has them.
func (p *place) serve() error {
	for _, dst := range endpoints {
		if err := p.Lab.Host(serverPod).AddRange(dst); err != nil {
			return err
		}
		if err := p.Lab.Host(lab.Outside).Route(dst, lab.NodeAddr4); err != nil {
			return err
		}
	}
	return nil
}

// track gives the node a rule in table nat that nothing matches.
func (p *place) track(ctx context.Context) error {
	node := p.Lab.Host(lab.Node)
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
