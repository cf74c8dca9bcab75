// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"fmt"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestTenThousandDeleted deletes 10,000 Services at once, first by name and then as all
// that a full Sync does not have: the kernel has what is desired and nothing else,
// connections live, to Services that stay and to those that went, and what the Services
// had can be used again.
func TestTenThousandDeleted(t *testing.T) {
	const n = 10000
	r := newRig(t, nil)
	at := func(p lb.Proto, vip string) lb.Frontend {
		return frontend(lb.ClusterIP, p, vip, lb.MasqueradeOffCluster)
	}
	stay := []*dataplane.Service{
		r.svc("dns", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, "backend1"), at(lb.UDP, "10.96.0.1:53")),
		r.svc("web", lb.IPv4, lb.TCP, "least-connection", r.pods(lb.IPv4, "backend1", "backend2"), at(lb.TCP, "10.96.0.2:80")),
	}
	vip := func(i int) string { return fmt.Sprintf("10.%d.%d.%d:80", 97+i>>16, i>>8&255, i&255) }
	all := append([]*dataplane.Service(nil), stay...)
	var names []lb.ServiceName
	for i := range n {
		svc := r.svc(fmt.Sprintf("x-%05d", i), lb.IPv4, lb.TCP, "round-robin", r.pods(lb.IPv4, "backend2", "backend3"), at(lb.TCP, vip(i)))
		all, names = append(all, svc), append(names, svc.Name)
	}
	held := map[string]*lab.Conn{}
	for name, gone := range map[string]dataplane.Delta{
		"by name": {Delete: names}, "by a full Sync": {Full: true, Put: stay},
	} {
		r.sync(dataplane.Delta{Full: true, Put: all})
		for _, from := range []string{"client1", lab.Node} {
			for _, to := range []string{"10.96.0.2:80", vip(0), vip(n - 1)} {
				held[name+", from "+from+" to "+to] = r.open(from, lab.TCP, to)
			}
		}
		r.sync(gone)
		if found := r.audit(stay); len(found) > 0 {
			t.Errorf("%s: found %q", name, found)
		}
		for of, m := range map[string]int{"names": r.count(r.dp.maps.names()) - len(stay), "frontends": r.count(r.dp.maps.frontends()) - 2*len(stay)} {
			if m != 0 {
				t.Errorf("%s: %d %s more than desired", name, m, of)
			}
		}
		r.answersFrom("client1", lab.TCP, vip(5), lab.Timeout)
		r.answersFrom("client1", lab.TCP, "10.96.0.2:80", lab.OK)
		r.dp.reclaim(t.Context())
		r.freeOnce()
		for what, c := range held {
			r.ping(c, what)
		}
		r.recountIsExact(name)
	}
}
