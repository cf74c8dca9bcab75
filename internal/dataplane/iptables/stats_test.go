// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"maps"
	"net/netip"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestStats: members with what is open at them, and those that left while something is.
func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pool(t, 1, "least-time", 2), pool(t, 2, "random", 1)
		l := newLoop(t)
		l.open(a, 1, 3)
		l.open(b, 0, 1)
		gone := ap("10.244.2.9:80")
		l.table = append(l.table, flow{proto: lb.TCP, state: 3, natted: true, frontend: b.frontends[0].Addr, backend: gone})
		d := &Dataplane{feedback: l.feedback, witness: newWitness(nil, nil, nil), services: map[lb.ServiceName]*service{}}
		d.opts.Latency = func(addr netip.AddrPort) time.Duration { return time.Duration(addr.Addr().As4()[3]) * time.Millisecond }
		for _, p := range []loaded{a, b} {
			svc := &dataplane.Service{Name: p.name, Cluster: dataplane.Pool{Backends: p.backends, Table: p.table}}
			for _, key := range p.frontends {
				svc.Frontends = append(svc.Frontends, lb.Frontend{FrontendKey: key})
			}
			d.services[p.name] = &service{Service: svc}
		}
		got, err := d.Stats()
		want := dataplane.Stats{Backends: []dataplane.BackendStats{
			{Service: a.name, Backend: a.backends[0].Addr, Latency: time.Millisecond},
			{Service: a.name, Backend: a.backends[1].Addr, Live: 3, Latency: 2 * time.Millisecond},
			{Service: b.name, Backend: b.backends[0].Addr, Live: 1},
			{Service: b.name, Backend: gone, Live: 1, Leaving: true},
		}}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("stats\n %+v, error %v, want\n %+v", got, err, want)
		}
		if live, want := d.Live(b.name), map[netip.AddrPort]uint64{b.backends[0].Addr: 1, gone: 1}; !maps.Equal(live, want) {
			t.Errorf("live %v, want %v", live, want)
		}
		if live := d.Live(lb.ServiceName{}); live != nil {
			t.Errorf("of a Service that is not served: %v", live)
		}
	})
}
