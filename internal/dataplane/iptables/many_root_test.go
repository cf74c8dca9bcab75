// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"fmt"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestTenThousandDeleted deletes 10,000 Services at once: what is left is what was there
// before they came, an audit finds nothing, and connections live, to Services that stay
// and to those that went.
func TestTenThousandDeleted(t *testing.T) {
	const n = 10000
	net := labtest.New(t)
	for _, backend := range []string{nftBackend, legacyBackend} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, net, backend, nil)
			stay := r.web(lb.TCP, "backend1", "remote1")
			r.sync(dataplane.Delta{Full: true, Put: stay})
			before := r.saved(backend)
			vip := func(i int) string { return fmt.Sprintf("10.%d.%d.%d:80", 97+i>>16, i>>8&255, i&255) }
			var many []*dataplane.Service
			var names []lb.ServiceName
			for i := range n {
				many = append(many, r.svc(fmt.Sprintf("x-%05d", i), lb.TCP, "random", r.pods(lb.IPv4, "backend2", "backend3"), vip(i)))
				names = append(names, many[i].Name)
			}
			r.sync(dataplane.Delta{Put: many})
			held := map[string]*lab.Conn{}
			for _, from := range []string{"client1", lab.Node} {
				for _, to := range []string{vip4, vip6, vip(0), vip(n - 1)} {
					held[from+" to "+to] = r.open(from, lab.TCP, to)
				}
			}
			r.sync(dataplane.Delta{Delete: names})
			if after := r.saved(backend); after != before {
				t.Errorf("%d bytes of rules are left, %d were there before:\n%.4000s", len(after), len(before), after)
			}
			r.audit(stay)
			for name, c := range held {
				if err := c.Ping(t.Context()); err != nil {
					t.Errorf("the connection from %s: %v", name, err)
				}
			}
			r.answered("after all are gone", "client2", lab.TCP, vip4)
			if res := r.dial("client2", lab.TCP, vip(1)); res.Kind == lab.OK {
				t.Errorf("%s answers: %+v", vip(1), res)
			}
		})
	}
}
