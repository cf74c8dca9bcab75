// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// manyRanges is how many a Service may well have.
const manyRanges = 2000

// rangeRow is one promise of source ranges.
type rangeRow struct {
	name string
	from []Origin
	run  func(t *testing.T, e *env, from Origin)
}

var rangeRows = []rangeRow{
	{"in the ranges", everyone, func(t *testing.T, e *env, from Origin) {
		fe := e.ranged(lb.LoadBalancer)
		e.put(t, e.limited(t, "a", e.backends(0, 1), e.exactly(from), fe))
		e.reaches(t, from, fe.Addr, e.backends(0, 1)...)
	}},
	{"not in the ranges", everyone, func(t *testing.T, e *env, from Origin) {
		fe, ip, port := e.ranged(lb.LoadBalancer), e.clusterIP(80), e.nodePort()
		e.put(t, e.limited(t, "a", e.backends(0, 1), e.elsewhere(1), fe, ip, port))
		e.fails(t, from, fe.Addr, Dropped)
		e.reaches(t, from, ip.Addr, e.backends(0, 1)...)
		e.reaches(t, from, e.on(port), e.backends(0, 1)...)
	}},
	{"in a range of many addresses", few, func(t *testing.T, e *env, from Origin) {
		fe := e.ranged(lb.LoadBalancer)
		wide := netip.PrefixFrom(e.source(from), e.source(from).BitLen()-9).Masked()
		e.put(t, e.limited(t, "a", e.backends(0), []netip.Prefix{wide}, fe))
		e.reaches(t, from, fe.Addr, e.backend(0))
	}},
	{"no range", few, func(t *testing.T, e *env, from Origin) {
		fe := e.ranged(lb.ExternalIP)
		e.put(t, e.limited(t, "a", e.backends(0), nil, fe))
		e.fails(t, from, fe.Addr, Dropped)
	}},
	{"the ranges change", few, func(t *testing.T, e *env, from Origin) {
		fe := e.ranged(lb.LoadBalancer)
		e.put(t, e.limited(t, "a", e.backends(0), e.exactly(from), fe))
		e.reaches(t, from, fe.Addr, e.backend(0))
		e.put(t, e.limited(t, "a", e.backends(0), e.elsewhere(1), fe))
		e.fails(t, from, fe.Addr, Dropped)
		open := fe
		open.Ranged = false
		e.put(t, e.limited(t, "a", e.backends(0), nil, open))
		e.reaches(t, from, fe.Addr, e.backend(0))
		e.put(t, e.limited(t, "a", e.backends(0), e.exactly(from), fe))
		e.reaches(t, from, fe.Addr, e.backend(0))
	}},
	{"two thousand ranges", few, func(t *testing.T, e *env, from Origin) {
		fe := e.ranged(lb.LoadBalancer)
		list := e.elsewhere(manyRanges)
		with := slices.Concat(list[:manyRanges/2], e.exactly(from), list[manyRanges/2:])
		e.put(t, e.limited(t, "a", e.backends(0), with, fe))
		e.reaches(t, from, fe.Addr, e.backend(0))
		e.put(t, e.limited(t, "a", e.backends(0), list, fe))
		e.fails(t, from, fe.Addr, Dropped)
	}},
	{"ranges are those of their service", few, func(t *testing.T, e *env, from Origin) {
		a, b := e.ranged(lb.LoadBalancer), e.ranged(lb.LoadBalancer)
		e.put(t, e.limited(t, "a", e.backends(0), e.exactly(from), a), e.limited(t, "b", e.backends(1), e.elsewhere(1), b))
		e.reaches(t, from, a.Addr, e.backend(0))
		e.fails(t, from, b.Addr, Dropped)
		e.sync(t, dataplane.Delta{Delete: []lb.ServiceName{e.name("a")}})
		e.put(t, e.limited(t, "b", e.backends(1), e.exactly(from), b))
		e.reaches(t, from, b.Addr, e.backend(1))
	}},
	{"in the ranges, without endpoints", few, func(t *testing.T, e *env, from Origin) {
		fe := e.ranged(lb.LoadBalancer)
		e.put(t, e.limited(t, "a", nil, e.exactly(from), fe))
		e.fails(t, from, fe.Addr, Refused)
	}},
}

// few are origins on both paths.
var few = []Origin{PodHooked, Outside}

func runRanges(t *testing.T, e *env) {
	e.dp = e.h.Dataplane(t)
	for _, row := range rangeRows {
		for _, from := range row.from {
			t.Run(row.name+", from "+string(from), func(t *testing.T) {
				e.need(t, Feature(from))
				e.sync(t, dataplane.Delta{Full: true})
				row.run(t, e, from)
			})
		}
	}
	t.Run("what is established outlives its range", func(t *testing.T) {
		if e.proto != lb.TCP {
			return // of a UDP flow the next packet may be the first
		}
		e.need(t, FeatureHeld, Feature(Outside))
		e.sync(t, dataplane.Delta{Full: true})
		fe := e.ranged(lb.LoadBalancer)
		e.put(t, e.limited(t, "a", e.backends(0), e.exactly(Outside), fe))
		h := e.open(t, Outside, fe.Addr)
		e.put(t, e.limited(t, "a", e.backends(0), e.elsewhere(1), fe))
		if err := h.Check(); err != nil {
			t.Errorf("a connection broke when its client left the ranges: %v", err)
		}
	})
}

// ranged returns a fresh frontend that only callers in the ranges may use.
func (e *env) ranged(typ lb.FrontendType) lb.Frontend {
	fe := e.external(typ, 80)
	fe.Ranged = true
	return fe
}

// limited is service with source ranges, which it sorts.
func (e *env) limited(t *testing.T, name string, bs []lb.Backend, ranges []netip.Prefix, fes ...lb.Frontend) *dataplane.Service {
	t.Helper()
	svc := e.service(t, name, bs, fes...)
	svc.Terms.SourceRanges = slices.SortedFunc(slices.Values(ranges), netip.Prefix.Compare)
	return svc
}

// exactly returns the address of an origin as a range. A process of the node that does
// not bind may have any of the node's: it gets a range of all of them.
func (e *env) exactly(from Origin) []netip.Prefix {
	bits := e.source(from).BitLen()
	if from == Node {
		bits = map[lb.Family]int{lb.IPv4: 12, lb.IPv6: 32}[e.fam]
	}
	return []netip.Prefix{netip.PrefixFrom(e.source(from), bits).Masked()}
}

// elsewhere returns n ranges in which nobody is.
func (e *env) elsewhere(n int) []netip.Prefix {
	base := netip.MustParsePrefix("240.0.0.0/8").Addr().As4()
	ps := make([]netip.Prefix, n)
	for i := range ps {
		if e.fam == lb.IPv4 {
			base[2], base[3] = byte(i>>8), byte(i)
			ps[i] = netip.PrefixFrom(netip.AddrFrom4(base), 32)
			continue
		}
		addr := [16]byte{0x3f, 0xfe, 14: byte(i >> 8), 15: byte(i)}
		ps[i] = netip.PrefixFrom(netip.AddrFrom16(addr), 128)
	}
	return ps
}
