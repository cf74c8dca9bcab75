// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestPathMTU sends a megabyte each way through VIPs and node ports over a link in the
// middle that is narrower than both ends: only ICMP errors that conntrack translates,
// and that nothing of lbproxy's keeps away, get it through.
func TestPathMTU(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		for _, tc := range []struct{ name, to, host, device, from string }{
			{"the next node reports it", "remote1", lab.Node2, "v-remote1", lab.Outside},
			{"the next node reports it to a pod", "remote1", lab.Node2, "v-remote1", "client2"},
			{"this node reports it", "backend1", lab.Node, "v-backend1", lab.Outside},
			{"this node reports it to a pod", "backend1", lab.Node, "v-backend1", "client2"},
			{"towards the client", "remote1", lab.Node, "v-client2", "client2"},
		} {
			t.Run(backend+"/"+tc.name, func(t *testing.T) {
				r := newRig(t, labtest.New(t), backend, nil)
				r.sync(dataplane.Delta{Full: true, Put: r.web(lb.TCP, tc.to)})
				labtest.Narrow(t, r.Lab.Host(tc.host), tc.device, 1300)
				for _, to := range []string{vip4, vip6, node4, node6} {
					if err := r.open(tc.from, lab.TCP, to).Bulk(t.Context(), 1<<20); err != nil {
						t.Errorf("%s: %v", to, err)
					}
				}
			})
		}
	}
}

// TestFragments sends datagrams that do not fit a packet, both ways.
func TestFragments(t *testing.T) {
	n := labtest.New(t)
	payload := bytes.Repeat([]byte("fragment"), 1000)
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, n, backend, nil)
			r.sync(dataplane.Delta{Full: true, Put: r.web(lb.UDP, "backend1", "remote1")})
			for _, to := range []string{vip4, vip6, node4, node6} {
				for _, from := range callers {
					res := r.Lab.Host(from).Dial(t.Context(), lab.Request{
						Proto: lab.UDP, To: netip.MustParseAddrPort(to), Payload: payload, Connected: true, Timeout: labtest.Patience,
					})
					if res.Kind != lab.OK {
						t.Errorf("%s from %s: %s %s", to, from, res.Kind, res.Err)
					}
				}
			}
		})
	}
}

// TestHealthCheckPorts has a firewall that drops by default: who asks for the health of a
// Service gets through as long as the Service has that port, nobody else does, and rules
// stay as they are.
func TestHealthCheckPorts(t *testing.T) {
	n := labtest.New(t)
	const port, other = 32123, 32124
	for _, p := range []uint16{port, other} {
		labtest.Serve(t, n.Lab.Host(lab.Node), p)
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, n, backend, nil)
			r.sync(dataplane.Delta{Full: true})
			for _, program := range []string{"iptables-" + backend, "ip6tables-" + backend} {
				r.output(program, "-w", "-P", "INPUT", "DROP")
				t.Cleanup(func() { r.output(program, "-w", "-P", "INPUT", "ACCEPT") })
				if strings.HasPrefix(program, "ip6") { // neighbours
					r.output(program, "-w", "-A", "INPUT", "-p", "icmpv6", "-j", "ACCEPT")
					t.Cleanup(func() { r.output(program, "-w", "-D", "INPUT", "-p", "icmpv6", "-j", "ACCEPT") })
				}
			}
			rules := r.saved(backend)
			check := func(when string, opened uint16) {
				t.Helper()
				for _, p := range []uint16{port, other} {
					for _, host := range []string{"172.30.0.11:%d", "[fd00:30::11]:%d"} {
						to := netip.MustParseAddrPort(fmt.Sprintf(host, p))
						for _, proto := range []string{lab.TCP, lab.UDP} {
							want, patience := lab.Timeout, labtest.Silence
							if p == opened && proto == lab.TCP {
								want, patience = lab.OK, labtest.Patience
							}
							res := r.Lab.Host(lab.Outside).Dial(t.Context(), lab.Request{Proto: proto, To: to, Timeout: patience})
							if res.Kind != want {
								t.Errorf("%s: %s to %s: %s %s, want %s", when, proto, to, res.Kind, res.Err, want)
							}
						}
					}
				}
			}
			balanced := func(p uint16) (svcs []*dataplane.Service) {
				for _, svc := range append(r.web(lb.TCP), r.web(lb.UDP)...) { // two ports of one object
					svc.Terms.HealthPort = p
					svcs = append(svcs, svc)
				}
				return svcs
			}
			check("without a Service", 0)
			all := balanced(port)
			r.sync(dataplane.Delta{Put: all})
			check("with a Service", port)
			r.sync(dataplane.Delta{Delete: []lb.ServiceName{all[0].Name, all[1].Name}})
			check("with one of its two ports", port)
			r.sync(dataplane.Delta{Put: balanced(other)})
			check("with another port", other)
			r.stop()
			check("without an agent", other)
			r.start()
			r.sync(dataplane.Delta{Full: true})
			check("after the Service was deleted", 0)
			if after := r.saved(backend); after != rules {
				t.Errorf("rules after it was deleted:\n%s\nbefore:\n%s", after, rules)
			}
		})
	}
}
