// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Defaults is what Services do that do not say it.
type Defaults struct {
	Algorithm string
	SlowStart time.Duration // 0: none
}

// fill returns b with what it does not say, and without what says nothing to its
// algorithm. SlowStart is lb.NoSlowStart or more than 0 in the result.
func (d Defaults) fill(b lb.Balance) lb.Balance {
	b.Algorithm = cmp.Or(b.Algorithm, d.Algorithm)
	b.SlowStart = cmp.Or(b.SlowStart, d.SlowStart, lb.NoSlowStart)
	if !lb.PartHashKey.Matters(b.Algorithm) {
		b.HashKey = lb.HashSource
	}
	if !lb.PartPrefix.Matters(b.Algorithm) {
		b.Prefix4, b.Prefix6 = 0, 0
	}
	return b
}

// Compile returns what a dataplane should do for svc; d fills in what svc does not
// say. ramps are the backends in slow start, as algo.Member.Ramp has it; nil: none.
// The result shares svc's slices. The error is algo's, for an unknown algorithm or
// too many backends, and names the Service.
func Compile(svc *lb.Service, d Defaults, ramps map[netip.AddrPort]uint16) (*dataplane.Service, error) {
	out := &dataplane.Service{Name: svc.Name, Balance: d.fill(svc.Balance), Frontends: svc.Frontends, Terms: svc.Terms}
	for _, sc := range []lb.Scope{lb.ScopeCluster, lb.ScopeLocal} {
		if err := compilePool(out.Pool(sc), svc.Pool(sc), out.Balance.Algorithm, ramps); err != nil {
			return nil, fmt.Errorf("service %s: %w", svc.Name, err)
		}
	}
	return out, nil
}

func compilePool(to *dataplane.Pool, from *lb.Pool, algorithm string, ramps map[netip.AddrPort]uint16) error {
	members := make([]algo.Member, len(from.Backends))
	named := algo.ByID(algorithm)
	for i, be := range from.Backends {
		members[i] = algo.Member{Weight: be.Weight, Ramp: ramps[be.Addr]}
		if named {
			members[i].ID = memberID(be.Addr)
		}
	}
	table, err := algo.Build(algorithm, members)
	if err != nil {
		return err
	}
	*to = dataplane.Pool{Backends: from.Backends, Table: table, Empty: from.Empty}
	return nil
}

// memberID is the 64-bit FNV-1a hash of a backend's address in its 16-byte form
// and its port in network order: the same on every node and in every release.
func memberID(ap netip.AddrPort) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	addr, port := ap.Addr().As16(), ap.Port()
	id := uint64(offset)
	for _, b := range addr {
		id = (id ^ uint64(b)) * prime
	}
	id = (id ^ uint64(port>>8)) * prime
	return (id ^ uint64(port&0xff)) * prime
}
