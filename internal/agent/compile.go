// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Compile returns what a dataplane should do for svc. defaultAlgorithm is used
// where svc names none. The result shares svc's slices. The error is algo's, for
// an unknown algorithm or too many backends, and names the Service.
func Compile(svc *lb.Service, defaultAlgorithm string) (*dataplane.Service, error) {
	out := &dataplane.Service{
		Name:      svc.Name,
		Algorithm: cmp.Or(svc.Algorithm, defaultAlgorithm),
		Frontends: svc.Frontends,
	}
	for _, sc := range []lb.Scope{lb.ScopeCluster, lb.ScopeLocal} {
		if err := compilePool(out.Pool(sc), svc.Pool(sc), out.Algorithm); err != nil {
			return nil, fmt.Errorf("service %s: %w", svc.Name, err)
		}
	}
	return out, nil
}

func compilePool(to *dataplane.Pool, from *lb.Pool, algorithm string) error {
	members := make([]algo.Member, len(from.Backends))
	for i, be := range from.Backends {
		members[i] = algo.Member{ID: memberID(be.Addr), Weight: be.Weight}
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
