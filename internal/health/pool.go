// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// vote is what speaks against a backend: it is Ejected.
type vote struct {
	passive bool // for what became of connections
	since   time.Time
}

// ruling is what becomes of the votes in one pool.
type ruling struct {
	out     map[netip.AddrPort]bool   // those that take no new connections
	ignored map[netip.AddrPort]string // those that do all the same, and why
}

// rule decides which backends of a pool take no new connections. Backends of weight 0
// take none anyway and do not count. votes may name backends of other pools. Neither the
// order of pool nor that of votes matters. What it says leaves at least one backend of
// a weight above 0, if there was one, and h.Panic of them.
func rule(pool []lb.Backend, votes map[netip.AddrPort]vote, h *lb.Health) ruling {
	var r ruling
	if len(votes) == 0 {
		return r
	}
	n := 0
	var probed, seen []netip.AddrPort // whom probes, connections speak against
	for _, be := range pool {
		if be.Weight == 0 {
			continue
		}
		n++
		if v, ok := votes[be.Addr]; ok && v.passive {
			seen = append(seen, be.Addr)
		} else if ok {
			probed = append(probed, be.Addr)
		}
	}
	if len(probed)+len(seen) == 0 {
		return r
	}
	r = ruling{out: map[netip.AddrPort]bool{}, ignored: map[netip.AddrPort]string{}}
	left := n - len(probed)
	if why := tooFew(left, n, h.Panic); why != "" {
		for _, addr := range slices.Concat(probed, seen) {
			r.ignored[addr] = why
		}
		return r
	}
	for _, addr := range probed {
		r.out[addr] = true
	}
	r.limit(seen, votes, left, n, h)
	return r
}

// limit lets as many out as may be out for what became of connections: those first that
// were ejected first. left of n are left so far.
func (r *ruling) limit(seen []netip.AddrPort, votes map[netip.AddrPort]vote, left, n int, h *lb.Health) {
	slices.SortFunc(seen, func(a, b netip.AddrPort) int {
		if c := votes[a].since.Compare(votes[b].since); c != 0 {
			return c
		}
		return a.Compare(b)
	})
	may := max(1, h.MaxEjected.Of(n))
	if h.MaxEjected == lb.NoPercent {
		may = 0
	}
	for i, addr := range seen {
		switch why := tooFew(left-1, n, h.Panic); {
		case i >= may:
			r.ignored[addr] = fmt.Sprintf("at most %d of %d may be out for what became of connections", may, n)
		case why != "":
			r.ignored[addr] = why
		default:
			r.out[addr] = true
			left--
		}
	}
}

// tooFew tells why left of n backends are too few; empty: they are not.
func tooFew(left, n int, least lb.Percent) string {
	switch {
	case left <= 0 && n == 1:
		return "it is the only one"
	case left <= 0:
		return fmt.Sprintf("none of %d would be left", n)
	case left*100 < n*int(max(least, 0)):
		return fmt.Sprintf("only %d of %d would be left, fewer than %d %%", left, n, least)
	}
	return ""
}

// apply returns backends with those that are out at weight 0, or without them. It is
// backends itself if nothing changes.
func (r *ruling) apply(backends []lb.Backend, drain bool) []lb.Backend {
	if len(r.out) == 0 {
		return backends
	}
	kept := make([]lb.Backend, 0, len(backends))
	for _, be := range backends {
		if r.out[be.Addr] {
			if drain {
				continue
			}
			be.Weight = 0
		}
		kept = append(kept, be)
	}
	return kept
}
