// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// unit is one port of one Service in one family before it has backends.
type unit struct {
	name      lb.ServiceName
	frontends []lb.Frontend // sorted
}

func (u unit) equal(v unit) bool { return u.name == v.name && slices.Equal(u.frontends, v.frontends) }

// uses tells which pools the frontends of u take connections from.
func (u unit) uses() (cluster, local bool) {
	for _, f := range u.frontends {
		for _, s := range [...]lb.Scope{f.Inside, f.Outside} {
			cluster = cluster || s == lb.ScopeCluster
			local = local || s == lb.ScopeLocal
		}
	}
	return cluster, local
}

// units makes one unit for each port and family of s, sorted by name. Of two
// ports of a Service with the same frontend, the first has it.
func units(obj lb.Object, s *spec, o *Options, p *problems) []unit {
	var us []unit
	taken := map[lb.FrontendKey]int{} // by index into s.ports
	for i := range s.ports {
		for _, f := range families {
			if !s.served[index(f)] {
				continue
			}
			pt := &s.ports[i]
			u := unit{name: lb.ServiceName{Object: obj, Port: pt.name, Proto: pt.proto, Family: f}}
			for _, fe := range s.frontends(pt, f, o) {
				first, dup := taken[fe.FrontendKey]
				if dup && first != i {
					p.add(pt.field, ReasonDuplicatePort, fmt.Errorf("%s is taken by %s", fe.FrontendKey, s.ports[first].field))
				}
				if !dup { // an external IP that is also the load balancer's is one frontend
					taken[fe.FrontendKey] = i
					u.frontends = append(u.frontends, fe)
				}
			}
			slices.SortFunc(u.frontends, lb.Frontend.Compare)
			u.frontends = slices.Clip(u.frontends)
			us = append(us, u)
		}
	}
	slices.SortFunc(us, func(a, b unit) int { return a.name.Compare(b.name) })
	return us
}

// frontends returns those of one port and family, the most specific type first.
func (s *spec) frontends(pt *port, f lb.Family, o *Options) []lb.Frontend {
	var fes []lb.Frontend
	add := func(typ lb.FrontendType, addr netip.Addr, port uint16) {
		fe := lb.Frontend{
			FrontendKey: lb.FrontendKey{Addr: netip.AddrPortFrom(addr, port), Proto: pt.proto},
			Type:        typ,
		}
		fe.Inside, fe.Outside, fe.Masquerade = s.policy(typ, o)
		fe.Ranged = typ == lb.LoadBalancer && s.ranged[index(f)]
		fes = append(fes, fe)
	}
	if addr := s.clusterIP[index(f)]; addr.IsValid() {
		add(lb.ClusterIP, addr, pt.port)
	}
	for _, v := range s.external {
		if lb.FamilyOf(v.addr) == f {
			add(v.typ, v.addr, pt.port)
		}
	}
	if pt.nodePort != 0 {
		add(lb.NodePort, f.Unspecified(), pt.nodePort)
	}
	return fes
}

// policy returns the pools of callers inside and outside, and whose address is
// replaced.
func (s *spec) policy(typ lb.FrontendType, o *Options) (inside, outside lb.Scope, m lb.Masquerade) {
	switch {
	case typ == lb.ClusterIP:
		if m = lb.MasqueradeOffCluster; o.MasqueradeAll {
			m = lb.MasqueradeAlways
		}
		if s.internalLocal {
			return lb.ScopeLocal, lb.ScopeLocal, m
		}
		return lb.ScopeCluster, lb.ScopeCluster, m
	case s.externalLocal:
		return lb.ScopeCluster, lb.ScopeLocal, lb.MasqueradeNever
	}
	return lb.ScopeCluster, lb.ScopeCluster, lb.MasqueradeAlways
}
