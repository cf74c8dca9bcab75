// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The session affinity of a Service that asks for one without saying how long, and
// the longest there is.
const (
	defaultAffinity = time.Duration(v1.DefaultClientIPServiceAffinitySeconds) * time.Second
	maxAffinity     = 86400 * time.Second
)

// extras is what few Services ask for.
type extras struct {
	affinity time.Duration                 // 0: none
	health   uint16                        // the port of the health check; 0: none
	served   [len(families)]bool           // of health: the families that the Service has
	ranged   [len(families)]bool           // whether source ranges keep somebody out
	ranges   [len(families)][]netip.Prefix // who may come then, sorted
	own      [len(families)][]netip.Prefix // the load balancer's addresses, sorted

	allowed [len(families)]allowed // what sources has returned last
}

// allowed is who may use the frontends of a family that are ranged, on a node with the
// given addresses.
type allowed struct {
	known   bool
	node    []netip.Addr
	sources []netip.Prefix
}

// orNil returns a copy of x, or nil if it asks for nothing.
func (x extras) orNil() *extras {
	if x.affinity == 0 && x.health == 0 && x.ranged == [len(families)]bool{} {
		return nil
	}
	return &x
}

func (x *extras) equal(y *extras) bool {
	if x == nil || y == nil {
		return x == y
	}
	same := x.affinity == y.affinity && x.health == y.health && x.served == y.served && x.ranged == y.ranged
	for i := range families {
		same = same && slices.Equal(x.ranges[i], y.ranges[i]) && slices.Equal(x.own[i], y.own[i])
	}
	return same
}

// dependsOnAddresses tells whether the addresses of this node matter to x.
func (x *extras) dependsOnAddresses() bool { return x != nil && x.ranged != [len(families)]bool{} }

// sources returns who may use the frontends of family f that are ranged, on a node
// with the given addresses: the ranges, and the load balancer's own addresses if this
// node is in one of them, which is how its packets to itself may look. The caller must
// not change the result, nor call this from two goroutines.
func (x *extras) sources(f lb.Family, node []netip.Addr) []netip.Prefix {
	i := index(f)
	if !x.ranged[i] {
		return nil
	}
	if a := &x.allowed[i]; !a.known || !slices.Equal(a.node, node) {
		*a = allowed{true, node, x.allow(i, node)}
	}
	return x.allowed[i].sources
}

// allow is sources of families[i], which are ranged.
func (x *extras) allow(i int, node []netip.Addr) []netip.Prefix {
	in := func(addr netip.Addr) bool {
		return slices.ContainsFunc(x.ranges[i], func(p netip.Prefix) bool { return p.Contains(addr) })
	}
	if !slices.ContainsFunc(node, in) {
		return x.ranges[i]
	}
	return sortPrefixes(slices.Concat(x.ranges[i], x.own[i]))
}

// sortPrefixes sorts ps, which are masked, by address and length, each once.
func sortPrefixes(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Clip(slices.Compact(ps))
}

func (s *spec) parseAffinity(in *v1.ServiceSpec, p *problems) {
	if in.SessionAffinity != v1.ServiceAffinityClientIP {
		if a := in.SessionAffinity; a != "" && a != v1.ServiceAffinityNone {
			p.add("spec.sessionAffinity", ReasonInvalidAffinity, fmt.Errorf("%q is taken as None", a))
		}
		return
	}
	s.affinity = defaultAffinity
	c := in.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return
	}
	seconds := time.Duration(*c.ClientIP.TimeoutSeconds)
	if most := maxAffinity / time.Second; seconds < 1 || seconds > most {
		p.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", ReasonInvalidAffinity,
			fmt.Errorf("%d is outside 1..%d: it is taken as %d", seconds, most, defaultAffinity/time.Second))
		return
	}
	s.affinity = seconds * time.Second
}

// parseHealthCheck reads the port at which load balancers ask for local endpoints.
func (s *spec) parseHealthCheck(in *v1.ServiceSpec, p *problems) {
	if in.Type != v1.ServiceTypeLoadBalancer || !s.externalLocal || in.HealthCheckNodePort == 0 {
		return
	}
	if !validPort(in.HealthCheckNodePort) {
		p.add("spec.healthCheckNodePort", ReasonInvalidPort, fmt.Errorf("%d is outside 1..65535", in.HealthCheckNodePort))
		return
	}
	s.health, s.extras.served = uint16(in.HealthCheckNodePort), s.served
}

// parseRanges reads who may use the load balancer's addresses. A family with a range
// of length 0, or without any range, is open to all, as in kube-proxy; if one cannot be
// read, whose family is not known, only those in a range may use either.
func (s *spec) parseRanges(in *v1.ServiceSpec, p *problems) {
	if len(in.LoadBalancerSourceRanges) == 0 {
		return
	}
	var ranged [len(families)]bool
	for i, text := range in.LoadBalancerSourceRanges {
		prefix, err := parsePrefix(text)
		if err != nil {
			p.add(fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), ReasonInvalidRange, err)
			ranged = s.served
			continue
		}
		f := index(lb.FamilyOf(prefix.Addr()))
		s.ranges[f] = append(s.ranges[f], prefix)
		ranged[f] = s.served[f]
	}
	for i, ps := range s.ranges {
		s.ranges[i] = sortPrefixes(ps)
		if !ranged[i] || slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Bits() == 0 }) {
			ranged[i], s.ranges[i] = false, nil
		}
	}
	s.ranged = ranged
}

// parsePrefix reads a range of addresses, masked, as Kubernetes does: white space
// around it is ignored, leading zeros are decimal.
func parsePrefix(text string) (netip.Prefix, error) {
	before, after, _ := strings.Cut(strings.TrimSpace(text), "/")
	addr, err := parseIP(before)
	n, bad := strconv.ParseUint(after, 10, 8)
	if err == nil && bad == nil && strings.Contains(before, ":") && addr.Is4() { // it was a v4-mapped one
		n -= 96 // below 0 is above 32
	}
	if err != nil || bad != nil || n > uint64(addr.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("%s is not a range of addresses such as 192.0.2.0/24", lb.Quote(text))
	}
	return netip.PrefixFrom(addr, int(n)).Masked(), nil
}

// terms returns what svc promises to the connections of u, except for what drains.
func (svc *service) terms(u *unit, node []netip.Addr) lb.Terms {
	t := lb.Terms{Reset: svc.said.reset && u.name.Proto == lb.TCP}
	if x := svc.extras; x != nil {
		t.Affinity, t.HealthPort = x.affinity, x.health
		if slices.ContainsFunc(u.frontends, func(f lb.Frontend) bool { return f.Ranged }) {
			t.SourceRanges = x.sources(u.name.Family, node)
		}
	}
	return t
}

// healthCheck returns what the health check of svc, which may be nil, says; from are
// its slices.
func healthCheck(svc *service, from []*slice, ws weights) (h lb.HealthCheck) {
	if svc == nil || svc.extras == nil || svc.extras.health == 0 {
		return h
	}
	h.Port, h.Served = svc.extras.health, svc.extras.served
	h.Ready = countLocalReady(from, ws)
	for i := range families {
		if !h.Served[i] {
			h.Ready[i] = 0
		}
	}
	return h
}
