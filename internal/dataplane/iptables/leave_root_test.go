// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// direct holds a connection of the node to a backend, not through a Service, from a port
// if it is not 0. It returns it with the port that the backend sees.
func (r *rig) direct(backend netip.Addr, from uint16) (*lab.Conn, uint16) {
	r.t.Helper()
	node := lab.NodeAddr4
	if backend.Is6() {
		node = lab.NodeAddr6
	}
	c, res := r.Lab.Host(lab.Node).Open(r.t.Context(), lab.Request{
		Proto: lab.TCP, To: netip.AddrPortFrom(backend, labtest.BackendPort), From: netip.AddrPortFrom(node, from), Timeout: labtest.Patience,
	})
	if res.Kind != lab.OK {
		r.t.Fatalf("from the node to %s: %s %s", backend, res.Kind, res.Err)
	}
	return c, res.Seen.Port()
}

// TestTracked: netfilter gives no other connection what a flow has that it was told of.
func TestTracked(t *testing.T) {
	r := newRig(t, labtest.New(t), nftBackend, nil)
	for i, program := range []string{"iptables-nft", "ip6tables-nft"} {
		backend := r.Lab.Host("backend1").Addrs()[i]
		r.output(program, "-t", "nat", "-A", "POSTROUTING", "-p", "tcp", "-d", backend.String(), "-j", "SNAT", "--to-source", ":20000-20001")
		fl := dataplane.Flow{
			Proto:   lb.TCP,
			Client:  netip.AddrPortFrom(r.Lab.Host(lab.Node).Addrs()[i], 20000),
			Backend: netip.AddrPortFrom(backend, labtest.BackendPort),
		}
		for _, made := range []int{1, 0} { // the second time it is known already
			r.node(func() error {
				flows, err := Tracker{}.Track([]dataplane.Flow{fl})
				if len(flows) != made {
					t.Errorf("%d flows were made known, want %d", len(flows), made)
				}
				return err
			})
		}
		_, port := r.direct(backend, 0)
		if port != 20001 {
			t.Errorf("%s sees the node as port %d, want the other one: a flow has 20000", backend, port)
		}
		r.node(func() error { return Tracker{}.Untrack([]dataplane.Flow{fl, fl}) })
		if _, port = r.direct(backend, 0); port != 20000 {
			t.Errorf("%s sees the node as port %d, want 20000, which is free", backend, port)
		}
	}
}

// TestTrackedTalks: a connection that was made known goes on, whatever its window.
func TestTrackedTalks(t *testing.T) {
	r := newRig(t, labtest.New(t), nftBackend, nil)
	c, res := r.Lab.Host("client1").Open(t.Context(), lab.Request{
		Proto: lab.TCP, To: netip.AddrPortFrom(r.Lab.Host("backend1").Addr4, labtest.BackendPort), Timeout: labtest.Patience,
	})
	if res.Kind != lab.OK {
		t.Fatal(res)
	}
	if err := c.Bulk(t.Context(), 1<<20); err != nil {
		t.Fatal(err)
	}
	r.node(func() error { // as if nobody had followed it
		_, err := cleanup(r.opts.orDefault())
		return err
	})
	fl := dataplane.Flow{Proto: lb.TCP, Client: res.Local, Backend: res.Peer}
	r.node(func() error { return Tracker{}.Untrack([]dataplane.Flow{fl}) })
	r.node(func() error { _, err := Tracker{}.Track([]dataplane.Flow{fl}); return err })
	r.sync(dataplane.Delta{Full: true, Put: r.web(lb.TCP, "backend1")}) // packets that conntrack finds invalid are dropped
	if err := c.Bulk(t.Context(), 1<<20); err != nil {
		t.Errorf("the connection: %v", err)
	}
}

// TestLeaveKeepsPorts: while both dataplanes have connections, one of the node that has
// the port and backend of a masqueraded one gets a port of those that sockets of the node
// have, and no other: before the rules go, afterwards, and when the iptables dataplane
// comes back, until the other one is gone.
func TestLeaveKeepsPorts(t *testing.T) {
	n := labtest.New(t)
	for _, backend := range []string{nftBackend, legacyBackend} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, n, backend, nil)
			services := r.web(lb.TCP, "backend1")
			r.sync(dataplane.Delta{Full: true, Put: services})
			old := r.open(lab.Outside, lab.TCP, node4)
			r.stop()
			r.node(func() error { return Keep(t.Context()) })
			r.checkMoves(40001)
			told, left := make(chan struct{}), make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				left <- r.Lab.Host(lab.Node).Do(func() error {
					return Leave(ctx, r.opts, func() []lb.FrontendKey { return append(keys(services[0].Frontends), keys(services[1].Frontends)...) },
						func() { close(told) })
				})
			}()
			<-told
			r.checkMoves(41001)
			if err := old.Ping(t.Context()); err != nil {
				t.Errorf("the old connection: %v", err)
			}
			cancel()
			if err := <-left; err != nil {
				t.Error(err)
			}
			r.start()
			r.sync(dataplane.Delta{Full: true, Put: services})
			r.checkMoves(42001)
			r.audit(services)
			r.node(func() error { return EndKeep(t.Context()) })
			if saved := r.saved(backend); strings.Contains(saved, keepChain) || !strings.Contains(saved, servicesChain) {
				t.Errorf("after the end:\n%s", saved)
			}
		})
	}
}

// checkMoves connects from ports that are taken, from first on.
func (r *rig) checkMoves(first uint16) {
	r.t.Helper()
	span := portSpan{}
	r.node(func() error { span = localPorts(); return nil })
	for i := range 2 {
		to := r.Lab.Host("backend1").Addrs()[i]
		for port := first; port < first+8; port++ {
			taken := made{ // by a connection through a Service
				proto: lb.TCP, state: tcpEstablished,
				client:   netip.AddrPortFrom(r.Lab.Host(lab.Node).Addrs()[i], port),
				frontend: netip.MustParseAddrPort([]string{vip4, vip6}[i]),
				to:       netip.AddrPortFrom(to, labtest.BackendPort),
			}
			r.node(func() error { return makeEntries([]made{taken}) })
			c, seen := r.direct(to, port)
			if what := fmt.Sprintf("port %d of the node is seen by %s as %d", port, to, seen); seen == port || seen < span.first || seen > span.last {
				r.t.Errorf("%s, want another one from %d to %d", what, span.first, span.last)
			}
			if err := c.Close(r.t.Context(), "rst"); err != nil {
				r.t.Error(err)
			}
		}
	}
}
