// SPDX-License-Identifier: Apache-2.0

// Package endpoints turns Services, EndpointSlices and the own Node into
// lb.Services: what is offered on this node, at which addresses, by whom. What
// it cannot serve it reports as a Problem. Objects come from a Kubernetes API
// server or from a directory of manifests; a Store keeps only what matters.
package endpoints

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Options is what the meaning of objects depends on, apart from themselves.
type Options struct {
	NodeName        string             // decides which endpoints are local; empty: none is
	Sources         []Source           // what must be listed before anything is published; nil: KubernetesSources
	MasqueradeAll   bool               // masquerade all callers of cluster IPs
	DenyExternalIPs bool               // do not serve spec.externalIPs
	CheckAlgorithm  func(string) error // tells whether an algorithm exists; nil: every one does

	// DefaultAlgorithm is that of Services that name none; empty: not known. It only
	// tells which annotations have no effect.
	DefaultAlgorithm string

	// IgnoreNodeWeights makes the weights of Nodes count for nothing. RunKubernetes
	// watches only the own Node then.
	IgnoreNodeWeights bool
}

// Resolve returns one lb.Service for each port and family of svc on the node that
// o names and that lies in zone, sorted by name, and what of svc is not served.
// Slices of other Services are ignored. Conflicts with other Services and weights
// of Pods and Nodes are not looked at: they are the Store's. A pool that no
// frontend uses is left empty.
// Source: Kubernetes 1.37 pkg/proxy.
func Resolve(svc *v1.Service, from []*discovery.EndpointSlice, zone string, o Options) ([]*lb.Service, []Problem) {
	parsed := parseService(svc, &o)
	parsed.settle(nil, &o)
	var own []*slice
	for _, s := range from {
		p := parseSlice(s, &o)
		if p.obj.Namespace == svc.Namespace && p.service == svc.Name {
			own = append(own, p)
		}
	}
	slices.SortStableFunc(own, compareSlices)
	return resolve(parsed, own, zone, nil, nil)
}

// resolve is Resolve for what was parsed and settled: from are svc's slices,
// sorted; ws are the weights of Pods and Nodes. lost, unless nil, names the problem
// of a frontend that another Service has.
func resolve(
	svc *service, from []*slice, zone string, ws weights, lost func(lb.Frontend) *Problem,
) ([]*lb.Service, []Problem) {
	ps := append(slices.Clip(svc.problems), svc.effects...)
	var out []*lb.Service
	for _, u := range svc.units {
		fes := u.frontends
		if lost != nil {
			var conflicts []Problem
			fes, conflicts = keep(fes, lost)
			ps = append(ps, conflicts...)
		}
		if len(fes) == 0 {
			continue
		}
		u.frontends = fes
		s := &lb.Service{Name: u.name, Balance: svc.balance, Frontends: fes}
		s.Cluster, s.Local = pools(u, from, zone, ws)
		ps = append(ps, weightless(s)...)
		out = append(out, s)
	}
	if len(svc.units) > 0 {
		for _, s := range from {
			ps = append(ps, s.problems...)
		}
		p := problems{kind: KindService, object: svc.obj}
		ws.problems(from, &p)
		ps = append(ps, p.list()...)
	}
	return out, ps
}

// weightless returns the problems of pools whose backends all have weight 0: new
// connections get what they get from a pool without backends. How many there are is
// not said: a drained Service that is scaled has the same problem still.
func weightless(s *lb.Service) (ps []Problem) {
	for _, sc := range []lb.Scope{lb.ScopeCluster, lb.ScopeLocal} {
		bs := s.Pool(sc).Backends
		if len(bs) == 0 || slices.ContainsFunc(bs, func(b lb.Backend) bool { return b.Weight > 0 }) {
			continue
		}
		where := ""
		if sc == lb.ScopeLocal {
			where = " on this node"
		}
		ps = append(ps, Problem{
			Kind: KindService, Object: s.Name.Object, Field: s.Name.String(), Reason: ReasonNoWeight,
			Err: fmt.Errorf("all endpoints%s have weight 0: new connections find none", where),
		})
	}
	return ps
}

// keep returns the frontends that are not lost; usually that is fes itself.
func keep(fes []lb.Frontend, lost func(lb.Frontend) *Problem) (kept []lb.Frontend, ps []Problem) {
	for i, fe := range fes {
		p := lost(fe)
		if p == nil {
			if len(ps) > 0 {
				kept = append(kept, fe)
			}
			continue
		}
		if len(ps) == 0 {
			kept = slices.Clone(fes[:i])
		}
		ps = append(ps, *p)
	}
	if len(ps) == 0 {
		return fes, nil
	}
	return kept, ps
}

// pools chooses the backends of u, for each scope that its frontends use. A local
// pool that takes no connections drops them if another node would take them, as the
// sender should soon go there, and refuses them if none would.
func pools(u unit, from []*slice, zone string, ws weights) (cluster, local lb.Pool) {
	cs := gather(u.name, from, ws)
	useCluster, useLocal := u.uses()
	if useCluster {
		cluster.Backends = clusterPool(cs, zone)
	}
	if useLocal {
		local.Backends = localPool(cs)
		if usableElsewhere(cs) {
			local.Empty = lb.Drop
		}
	}
	return cluster, local
}
