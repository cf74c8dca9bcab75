// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// FrontendType says where a frontend's address comes from.
type FrontendType uint8

// The frontend types. The address of a NodePort is the unspecified address of
// its family: it stands for every address of the node.
const (
	ClusterIP FrontendType = iota + 1
	NodePort
	LoadBalancer
	ExternalIP
)

// String returns the type's name as Kubernetes writes it.
func (t FrontendType) String() string {
	switch t {
	case ClusterIP:
		return "ClusterIP"
	case NodePort:
		return "NodePort"
	case LoadBalancer:
		return "LoadBalancer"
	case ExternalIP:
		return "ExternalIP"
	}
	return fmt.Sprintf("frontend-type-%d", uint8(t))
}

// Scope chooses one of a Service's two pools.
type Scope uint8

// The scopes: all chosen endpoints, or only those on this node.
const (
	ScopeCluster Scope = iota
	ScopeLocal
)

// Masquerade says whose source address is replaced by the node's on the packet
// path. Sockets on the node are translated at connect() and never masqueraded.
type Masquerade uint8

// The masquerade policies. A connection from a backend to itself is always
// masqueraded on the packet path.
const (
	MasqueradeNever      Masquerade = iota
	MasqueradeOffCluster            // callers that are no pods, where that is known: see LocalDetector.Knows
	MasqueradeAlways
)

// FrontendKey is the identity of a frontend on a node: no two Services may
// claim the same one.
type FrontendKey struct {
	Addr  netip.AddrPort
	Proto Proto
}

// String returns addr:port/PROTO.
func (k FrontendKey) String() string { return k.Addr.String() + "/" + k.Proto.String() }

// Frontend is one address, port and protocol at which a Service answers.
type Frontend struct {
	FrontendKey
	Type       FrontendType
	Inside     Scope // the pool for pods and for processes of this node
	Outside    Scope // the pool for everybody else
	Masquerade Masquerade
	Ranged     bool // only callers in Service.SourceRanges are served, all others get silence
}

// Compare orders frontends by address, port, protocol.
func (f Frontend) Compare(o Frontend) int {
	return cmp.Or(f.Addr.Compare(o.Addr), cmp.Compare(f.Proto, o.Proto))
}

// DefaultWeight is the weight of a backend for which none was given.
const DefaultWeight = 100

// Backend is one endpoint of a Service port.
type Backend struct {
	Addr   netip.AddrPort
	Weight uint16 // 0 takes no new connections
	Local  bool   // runs on this node
}

// Compare orders backends by address and port.
func (b Backend) Compare(o Backend) int { return b.Addr.Compare(o.Addr) }

// Verdict is what a caller gets from a pool without backends.
type Verdict uint8

// The verdicts: refuse at once, or stay silent.
const (
	Reject Verdict = iota
	Drop
)

// String returns reject or drop.
func (v Verdict) String() string {
	if v == Drop {
		return "drop"
	}
	return "reject"
}

// Pool is a set of backends that new connections may go to, sorted by address.
type Pool struct {
	Backends []Backend
	Empty    Verdict // what callers get when Backends is empty
}

// Service is one balanced port of one Service in one family, after traffic
// policies were applied. Slices are sorted and never changed after they were
// published, so a Service may be shared.
type Service struct {
	Name      ServiceName
	Balance   Balance
	Frontends []Frontend
	Cluster   Pool
	Local     Pool // used only where a Frontend names ScopeLocal
	Terms     Terms
	Health    Health
}

// Terms are what a Service promises to its connections beyond the choice of a
// backend. A dataplane is told them as they are.
type Terms struct {
	// Affinity is how long after its last new connection a client's address keeps its
	// backend, in whole seconds; 0: there is no session affinity.
	Affinity time.Duration

	// SourceRanges are who may use the Frontends that are Ranged, of the Service's
	// family, masked and sorted.
	SourceRanges []netip.Prefix

	// Draining are endpoints in neither pool that still serve the connections they
	// have, sorted: UDP flows stay with them. Others that leave the pools are gone:
	// UDP flows move and connected UDP sockets are destroyed. Only filled where that
	// matters: for UDP, and where Reset is set.
	Draining []netip.AddrPort

	Reset bool // TCP connections to an endpoint that is gone are reset

	// Suspect is for how long new TCP connections avoid a backend that has just refused
	// one or has not answered one, until more is known; 0: for no time. A dataplane that
	// cannot see that in time heeds only dataplane.Witness.
	Suspect time.Duration

	// HealthPort is the healthCheckNodePort of the Service object, 0: it has none. A
	// dataplane that writes to the host's firewall opens it.
	HealthPort uint16
}

// Equal tells whether t and o promise the same.
func (t Terms) Equal(o Terms) bool {
	return t.Affinity == o.Affinity && t.Reset == o.Reset && t.Suspect == o.Suspect && t.HealthPort == o.HealthPort &&
		slices.Equal(t.SourceRanges, o.SourceRanges) && slices.Equal(t.Draining, o.Draining)
}

// Pool returns the pool of scope s.
func (s *Service) Pool(sc Scope) *Pool {
	if sc == ScopeLocal {
		return &s.Local
	}
	return &s.Cluster
}

// Change is the present state of one Service object: all its balanced ports.
// An object that is gone, headless or of type ExternalName has none.
type Change struct {
	Object   Object
	Services []*Service
	Health   HealthCheck

	// Triggered is when the oldest change of endpoints that is in it came about, by
	// the clock of the control plane; zero: not known, or before this process started.
	Triggered time.Time
}

// HealthCheck is what a Service's healthCheckNodePort answers. It is comparable.
type HealthCheck struct {
	Port   uint16  // 0: it has none
	Served [2]bool // whether the Service has the family: IPv4, IPv6
	Ready  [2]int  // its distinct ready endpoints on this node, of a weight above 0, by family: IPv4, IPv6
}
