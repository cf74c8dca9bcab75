// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestExplainAlgorithms asks for each algorithm what would happen: the algorithm is
// named, and where one backend is certain it is the one that then answers.
func TestExplainAlgorithms(t *testing.T) {
	r := newRig(t, nil)
	from := r.lab.Host("client2").Addr4
	key := lb.FrontendKey{Addr: netip.MustParseAddrPort(endsVIP), Proto: lb.TCP}
	backends := r.pods(lb.IPv4, "backend1", "backend2", "backend3")
	for i, weight := range []uint16{30, 20, 10} {
		backends[i].Weight = weight
	}
	for _, name := range algo.Names() {
		svc := r.svc("web", lb.IPv4, lb.TCP, name, backends,
			frontend(lb.ClusterIP, lb.TCP, endsVIP, lb.MasqueradeOffCluster))
		svc.Balance.Algorithm = name
		r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
		r.open("client1", lab.TCP, endsVIP)
		r.open("client1", lab.TCP, endsVIP)
		v, err := OpenView(r.opts.BPFFS)
		if err != nil {
			t.Fatal(err)
		}
		e, err := v.Explain(from, key)
		if err != nil {
			t.Fatal(err)
		}
		svcs, err := v.Services()
		if err != nil {
			t.Fatal(err)
		}
		if svcs[0].Algorithm != name {
			t.Errorf("algorithm %q, want %q", svcs[0].Algorithm, name)
		}
		for i, b := range svcs[0].Backends {
			if b.Weight != backends[i].Weight || b.Address != backends[i].Addr.String() {
				t.Errorf("%s: backend %s has weight %d, want %s with %d", name, b.Address, b.Weight, backends[i].Addr, backends[i].Weight)
			}
		}
		t.Logf("%s: %s", name, e.Reason)
		if name == "hash" || name == "ip-hash" {
			got, rs := r.dial("client2", lab.Request{Proto: lab.TCP, To: key.Addr}, 1)
			if !strings.Contains(e.Reason, rs[0].ServerLocal.String()) {
				t.Errorf("%s: %q, but %v answered", name, e.Reason, got)
			}
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestTurnsGoOn removes and returns a backend between turns: nobody is served twice
// in a row, and nobody is left out.
func TestTurnsGoOn(t *testing.T) {
	r := newRig(t, nil)
	put := func(hosts ...string) {
		r.sync(dataplane.Delta{Put: []*dataplane.Service{r.svc("web", lb.IPv4, lb.TCP, "round-robin", r.pods(lb.IPv4, hosts...),
			frontend(lb.ClusterIP, lb.TCP, endsVIP, lb.MasqueradeOffCluster))}})
	}
	next := func() string {
		_, rs := r.dial("client2", lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(endsVIP)}, 1)
		return rs[0].Backend
	}
	all := []string{"backend1", "backend2", "backend3"}
	put(all...)
	after := map[string]string{"backend1": "backend2", "backend2": "backend3", "backend3": "backend1"}
	last := next()
	for range 4 {
		put(without(all, last)...) // who was served last leaves
		second := next()
		if second != after[last] {
			t.Errorf("after %s left: %s, want %s", last, second, after[last])
		}
		put(all...)
		third := next()
		if third != after[second] {
			t.Errorf("after %s returned: %s, want %s", last, third, after[second])
		}
		last = third
	}
}

// TestExplainTerms asks what session affinity, source ranges and cluster IPs do.
func TestExplainTerms(t *testing.T) {
	r := newRig(t, nil)
	svc := r.stickyService(lb.IPv4, lb.TCP, "backend1", "backend2", "backend3")
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{ranged(svc, "10.244.0.0/16")}})
	client := r.lab.Host("client2")
	_, rs := r.dial("client2", lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4])}, 1)
	v, err := OpenView(r.opts.BPFFS)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for _, tc := range []struct {
		from           netip.Addr
		to             string
		decision, says string
	}{
		{client.Addr4, vips[lb.IPv4], "forward", "keeps " + rs[0].ServerLocal.String()},
		{client.Addr4, otherVIPs[lb.IPv4], "forward", "keeps " + rs[0].ServerLocal.String()},
		{r.lab.Host("client1").Addr4, vips[lb.IPv4], "forward", "in turn"},
		{lab.OutsideAddr4, vips[lb.IPv4], "drop", "source ranges"},
		{lab.OutsideAddr4, otherVIPs[lb.IPv4], "forward", "in turn"},
		{client.Addr4, "10.96.0.9:81", "reject", "has no port 81/TCP"},
		{client.Addr4, "10.96.0.8:81", "pass", "not a frontend"},
	} {
		e, err := v.Explain(tc.from, lb.FrontendKey{Addr: netip.MustParseAddrPort(tc.to), Proto: lb.TCP})
		if err != nil || e.Decision != tc.decision || !strings.Contains(e.Reason, tc.says) {
			t.Errorf("%s to %s: %s, %q, %v, want %s and %q", tc.from, tc.to, e.Decision, e.Reason, err, tc.decision, tc.says)
		}
	}
}
