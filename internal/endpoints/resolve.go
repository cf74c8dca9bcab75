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
	OnNode          func(lb.Node)      // told what the own Node says, at first and when that changes; may be nil, must not block
	DenyExternalIPs bool               // do not serve spec.externalIPs
	SCTP            bool               // the dataplane serves SCTP, except to processes of the node itself
	CheckAlgorithm  func(string) error // tells whether an algorithm exists; nil: every one does

	// DefaultAlgorithm is that of Services that name none; empty: not known. It only
	// tells which annotations have no effect.
	DefaultAlgorithm string

	// DefaultHealth is how backends are watched where a Service does not say it. It is
	// complete, or zero for lb.DefaultHealth's.
	DefaultHealth lb.Health

	// IgnoreNodeWeights makes the weights of Nodes count for nothing. RunKubernetes
	// watches only the own Node then, and does not feed Nodes.
	IgnoreNodeWeights bool
}

// Resolve returns one lb.Service for each port and family of svc on the node that
// o names and n describes, sorted by name, and what of svc is not served.
// Slices of other Services are ignored. Conflicts with other Services and weights
// of Pods and Nodes are not looked at: they are the Store's. A pool that no
// frontend uses is left empty.
// Source: Kubernetes 1.37 pkg/proxy.
func Resolve(svc *v1.Service, from []*discovery.EndpointSlice, n lb.Node, o Options) ([]*lb.Service, []Problem) {
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
	at := place{node: n}
	return at.resolve(parsed, own)
}

// place is where a Service is resolved, and among what.
type place struct {
	node    lb.Node
	weights weights                    // of Pods and Nodes
	lost    func(lb.Frontend) *Problem // the problem of a frontend that another Service has; nil: none has
	scratch []candidate                // memory that is used again
	wide    *wide                      // what was gathered before; nil: it is not kept
}

// resolve is Resolve for what was parsed and settled: from are svc's slices, sorted.
func (at *place) resolve(svc *service, from []*slice) ([]*lb.Service, []Problem) {
	ps := append(slices.Clip(svc.problems), svc.effects...)
	var out []*lb.Service
	for _, u := range svc.units {
		fes := u.frontends
		if at.lost != nil {
			var conflicts []Problem
			fes, conflicts = keep(fes, at.lost)
			ps = append(ps, conflicts...)
		}
		if len(fes) == 0 {
			continue
		}
		u.frontends = fes
		s := &lb.Service{
			Name: u.name, Balance: svc.said.balance, Frontends: fes, Terms: svc.terms(&u, at.node.Addrs), Health: svc.said.health,
		}
		chosen := at.choose(&u, from, s.Terms.Reset)
		s.Cluster, s.Local, s.Terms.Draining = chosen.cluster, chosen.local, chosen.draining
		ps = append(ps, weightless(s)...)
		out = append(out, s)
	}
	if len(svc.units) > 0 {
		for _, s := range from {
			ps = append(ps, s.problems...)
		}
		p := problems{kind: KindService, object: svc.obj}
		at.weights.problems(from, &p)
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
		where, here := "", sc == lb.ScopeLocal
		if here {
			where = " on this node"
		}
		ps = append(ps, Problem{
			Kind: KindService, Object: s.Name.Object, Field: s.Name.String(), Reason: ReasonNoWeight,
			Err: fmt.Errorf("all endpoints%s have weight 0: new connections find none", where), Quiet: here,
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

// choose chooses among the endpoints of u, for each scope that its frontends use.
// Who drains matters for UDP, and where connections are reset.
func (at *place) choose(u *unit, from []*slice, reset bool) selection {
	var cs []candidate
	if at.wide != nil {
		cs, at.scratch = at.wide.gather(u.name, from, at.weights, at.scratch)
	} else {
		at.scratch = gather(u.name, from, at.weights, at.scratch)
		cs = at.scratch
	}
	w := wish{zone: at.node.Zone, draining: reset || u.name.Proto == lb.UDP}
	w.cluster, w.local = u.uses()
	return choose(cs, w)
}
