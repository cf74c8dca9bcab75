// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// audit reads all rules and audits svcs. It fails unless what is found is what is said
// to be: a part of each text, in any order.
func (r *rig) audit(svcs []*dataplane.Service, want ...string) {
	r.t.Helper()
	r.node(func() error { return r.dp.readBack(r.t.Context()) })
	found, err := r.dp.Audit(r.t.Context(), svcs)
	if err != nil {
		r.t.Fatal(err)
	}
	if len(found) != len(want) {
		r.t.Errorf("found %q, want %q", found, want)
	}
	for _, w := range want {
		if !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, w) }) {
			r.t.Errorf("found %q, want %q among it", found, w)
		}
	}
}

// TestAudit damages the tables and ipsets in ways that no look at their jumps shows:
// each is found, repaired, and nothing is found when looked at again. What others have
// is left alone.
func TestAudit(t *testing.T) {
	n := labtest.New(t)
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, n, backend, nil)
			web := r.svc("web", lb.TCP, "random", r.pods(lb.IPv4, "backend1", "backend2"), "10.96.0.1:80", "0.0.0.0:30080")
			sticky := r.svc("sticky", lb.TCP, "round-robin", r.pods(lb.IPv4, "backend1", "backend2"), "10.96.0.2:80")
			sticky.Terms.Affinity = time.Hour
			hashed := r.svc("hashed", lb.UDP, "hash", r.pods(lb.IPv6, "backend1", "backend2"), "[fd00:10:96::3]:80")
			svcs := []*dataplane.Service{web, sticky, hashed}
			r.sync(dataplane.Delta{Full: true, Put: svcs})
			r.audit(svcs)
			pool := (&renderer{id: web.Name.String()}).poolName(lb.ScopeCluster)
			tree := hashName("T-", "vips")
			ipt, ipt6 := "iptables-"+backend, "ip6tables-"+backend
			for _, row := range []struct {
				name string
				do   func()
				want string
			}{
				{"a rule less", func() { r.output(ipt, "-t", "nat", "-D", pool, "2") }, pool + " has other rules"},
				{"a rule more", func() { r.output(ipt, "-t", "nat", "-A", pool, "-j", "RETURN") }, pool + " has other rules"},
				{"another rule", func() { r.output(ipt, "-t", "nat", "-R", servicesChain, "1", "-j", "RETURN") }, servicesChain + " has other rules"},
				{"a tree without rules", func() { r.output(ipt, "-t", "nat", "-F", tree) }, tree + " has other rules"},
				{"filter", func() { r.output(ipt6, "-R", refuseChain, "2", "-j", "ACCEPT") }, refuseChain + " has other rules"},
				{"a chain of nobody", func() { r.output(ipt, "-t", "nat", "-N", "LBP-C-0000") }, "LBP-C-0000 belongs to nobody"},
				{"a member less", func() { r.member("LBP-VIPS-4", "10.96.0.1", false) }, "LBP-VIPS-4"},
				{"a member more", func() { r.member("LBP-VIPS-4", "10.96.9.9", true) }, "LBP-VIPS-4"},
			} {
				t.Run(row.name, func(t *testing.T) {
					outer := r.t
					r.t = t
					defer func() { r.t = outer }()
					before := r.saved(backend)
					row.do()
					r.audit(svcs, row.want)
					r.audit(svcs)
					if after := r.saved(backend); after != before {
						t.Errorf("rules after the repair:\n%s\nbefore:\n%s", after, before)
					}
				})
			}
			r.answered("after all repairs", "client1", "tcp", "10.96.0.1:80")
		})
	}
}

// member changes an ipset behind the Dataplane's back.
func (r *rig) member(set, addr string, add bool) {
	r.t.Helper()
	r.node(func() error {
		s, err := openSets()
		if err != nil {
			return err
		}
		defer s.close()
		m := member{addr: single(netip.MustParseAddr(addr))}
		if add {
			return s.add(set, m)
		}
		return s.del(set, m)
	})
}
