// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// vip returns a fresh address of the section's family from ps.
func (e *env) vip(ps []netip.Prefix) netip.Addr {
	i := slices.IndexFunc(ps, func(p netip.Prefix) bool { return lb.FamilyOf(p.Addr()) == e.fam })
	last, ok := e.vips[ps[i]]
	if !ok {
		last = ps[i].Masked().Addr().Next().Next() // leave the first ones to the network
	}
	e.vips[ps[i]] = last.Next()
	return e.vips[ps[i]]
}

// clusterIP returns a frontend at a fresh cluster IP.
func (e *env) clusterIP(port uint16) lb.Frontend {
	return e.at(netip.AddrPortFrom(e.vip(e.addrs.ServiceVIPs), port), lb.ClusterIP)
}

// external returns a frontend of a load balancer or external IP, fresh.
func (e *env) external(typ lb.FrontendType, port uint16) lb.Frontend {
	return e.at(netip.AddrPortFrom(e.vip(e.addrs.ExternalVIPs), port), typ)
}

// nodePort returns a frontend at a fresh node port.
func (e *env) nodePort() lb.Frontend {
	e.ports++
	return e.at(netip.AddrPortFrom(e.fam.Unspecified(), e.ports), lb.NodePort)
}

// at returns a frontend as a Service without traffic policies has it.
func (e *env) at(addr netip.AddrPort, typ lb.FrontendType) lb.Frontend {
	fe := lb.Frontend{FrontendKey: lb.FrontendKey{Addr: addr, Proto: e.proto}, Type: typ, Masquerade: lb.MasqueradeAlways}
	if typ == lb.ClusterIP {
		fe.Masquerade = lb.MasqueradeOffCluster
	}
	return fe
}

// externalLocal gives fe the external traffic policy Local.
func externalLocal(fe lb.Frontend) lb.Frontend {
	fe.Outside, fe.Masquerade = lb.ScopeLocal, lb.MasqueradeNever
	return fe
}

// internalLocal gives fe, a cluster IP, the internal traffic policy Local.
func internalLocal(fe lb.Frontend) lb.Frontend {
	fe.Inside, fe.Outside = lb.ScopeLocal, lb.ScopeLocal
	return fe
}

// backend returns the i-th backend at its first port.
func (e *env) backend(i int) lb.Backend { return e.backendAt(i, 0) }

func (e *env) backendAt(i, port int) lb.Backend {
	be := e.addrs.Backends[i]
	addr := be.V4
	if e.fam == lb.IPv6 {
		addr = be.V6
	}
	return lb.Backend{
		Addr:   netip.AddrPortFrom(addr, e.addrs.Ports[port]),
		Weight: lb.DefaultWeight,
		Local:  be.Local,
	}
}

// backends returns those with the given numbers.
func (e *env) backends(numbers ...int) []lb.Backend {
	bs := make([]lb.Backend, len(numbers))
	for i, n := range numbers {
		bs[i] = e.backend(n)
	}
	return bs
}

// all returns every backend, or only the local ones if there can be no others.
func (e *env) all() []lb.Backend {
	var bs []lb.Backend
	for i, be := range e.addrs.Backends {
		if be.Local || e.h.Supports(FeatureRemote) {
			bs = append(bs, e.backend(i))
		}
	}
	return bs
}

func local(bs []lb.Backend) []lb.Backend {
	return slices.DeleteFunc(slices.Clone(bs), func(be lb.Backend) bool { return !be.Local })
}

func remote(bs []lb.Backend) []lb.Backend {
	return slices.DeleteFunc(slices.Clone(bs), func(be lb.Backend) bool { return be.Local })
}

func weighted(be lb.Backend, w uint16) lb.Backend {
	be.Weight = w
	return be
}

// service returns a round-robin Service whose local pool is the local part of bs.
// As kube-proxy has it, an empty local pool is silent if there are others.
func (e *env) service(t *testing.T, name string, bs []lb.Backend, fes ...lb.Frontend) *dataplane.Service {
	t.Helper()
	return e.balanced(t, "round-robin", name, bs, fes...)
}

func (e *env) balanced(
	t *testing.T, algorithm, name string, bs []lb.Backend, fes ...lb.Frontend,
) *dataplane.Service {
	t.Helper()
	svc := &dataplane.Service{Name: e.name(name), Balance: lb.Balance{Algorithm: algorithm}, Frontends: slices.Clone(fes)}
	slices.SortFunc(svc.Frontends, lb.Frontend.Compare)
	svc.Cluster = pool(t, algorithm, bs)
	svc.Local = pool(t, algorithm, local(bs))
	if len(bs) > 0 {
		svc.Local.Empty = lb.Drop
	}
	return svc
}

func (e *env) name(name string) lb.ServiceName {
	return lb.ServiceName{
		Object: lb.Object{Namespace: "dptest", Name: name}, Port: "p", Proto: e.proto, Family: e.fam,
	}
}

func pool(t *testing.T, algorithm string, bs []lb.Backend) dataplane.Pool {
	t.Helper()
	p := dataplane.Pool{Backends: slices.Clone(bs)}
	slices.SortFunc(p.Backends, lb.Backend.Compare)
	ms := make([]algo.Member, len(bs))
	for i, be := range p.Backends {
		ms[i] = algo.Member{ID: uint64(i) + 1, Weight: be.Weight}
	}
	var err error
	if p.Table, err = algo.Build(algorithm, ms); err != nil {
		t.Fatalf("table: %v", err)
	}
	return p
}
