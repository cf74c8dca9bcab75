// SPDX-License-Identifier: Apache-2.0

// Package endpoints turns Services, EndpointSlices and the own Node into
// lb.Services: what is offered on this node, at which addresses, by whom. What
// it cannot serve it reports as a Problem. Objects come from a Kubernetes API
// server or from a directory of manifests; a Store keeps only what matters.
package endpoints

import (
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
}

// Resolve returns one lb.Service for each port and family of svc on the node that
// o names and that lies in zone, sorted by name, and what of svc is not served.
// Slices of other Services are ignored. Conflicts with other Services are not
// looked at: they are the Store's. A pool that no frontend uses is left empty.
// Source: Kubernetes 1.37 pkg/proxy.
func Resolve(svc *v1.Service, from []*discovery.EndpointSlice, zone string, o Options) ([]*lb.Service, []Problem) {
	parsed := parseService(svc, &o)
	var own []*slice
	for _, s := range from {
		p := parseSlice(s, &o)
		if p.obj.Namespace == svc.Namespace && p.service == svc.Name {
			own = append(own, p)
		}
	}
	slices.SortStableFunc(own, compareSlices)
	return resolve(parsed, own, zone, nil)
}

// resolve is Resolve for what was parsed: from are svc's slices, sorted.
// lost, unless nil, names the problem of a frontend that another Service has.
func resolve(svc *service, from []*slice, zone string, lost func(lb.Frontend) *Problem) ([]*lb.Service, []Problem) {
	ps := slices.Clip(svc.problems)
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
		s := &lb.Service{Name: u.name, Algorithm: svc.algorithm, Frontends: fes}
		s.Cluster, s.Local = pools(u, from, zone)
		out = append(out, s)
	}
	if len(svc.units) > 0 {
		for _, s := range from {
			ps = append(ps, s.problems...)
		}
	}
	return out, ps
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

// pools chooses the backends of u, for each scope that its frontends use.
func pools(u unit, from []*slice, zone string) (cluster, local lb.Pool) {
	cs := gather(u.name, from)
	useCluster, useLocal := u.uses()
	if useCluster {
		cluster.Backends = clusterPool(cs, zone)
	}
	if useLocal {
		local.Backends = localPool(cs)
		if anyUsable(cs) {
			local.Empty = lb.Drop
		}
	}
	return cluster, local
}
