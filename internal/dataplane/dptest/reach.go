// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// world is one Service of each sort, all there at the same time, and where they
// answer.
type world struct {
	svcs []*dataplane.Service
	to   map[string]netip.AddrPort
}

// The targets of the rows. A node port stands for itself on each node address.
const (
	clusterIP     = "cluster IP"
	nodePort      = "node port"
	loadBalancer  = "load balancer"
	externalIP    = "external IP"
	localPort     = "node port, local"
	localLB       = "load balancer, local"
	localExternal = "external IP, local"
	awayPort      = "node port, local, no endpoint here"
	awayLB        = "load balancer, local, no endpoint here"
	internal      = "cluster IP, internal local"
	internalAway  = "cluster IP, internal local, no endpoint here"
	emptyIP       = "cluster IP without endpoints"
	emptyPort     = "node port without endpoints"
	emptyLB       = "load balancer without endpoints"
	drainedIP     = "cluster IP of weights 0"
	selfIP        = "cluster IP of backend 0"
	selfPort      = "node port of backend 0"
	otherPort     = "cluster IP, a port it has not"
	otherNodePort = "node port of nobody"
	nobodysIP     = "cluster IP of nobody"
)

func (e *env) world(t *testing.T) *world {
	w := &world{to: map[string]netip.AddrPort{}}
	add := func(name string, bs []lb.Backend, fes map[string]lb.Frontend) {
		var list []lb.Frontend
		for target, fe := range fes {
			list = append(list, fe)
			w.to[target] = fe.Addr
		}
		w.svcs = append(w.svcs, e.service(t, name, bs, list...))
	}
	type frontends = map[string]lb.Frontend
	all, one := e.all(), e.backends(0)
	add("plain", all, frontends{
		clusterIP: e.clusterIP(80), nodePort: e.nodePort(),
		loadBalancer: e.external(lb.LoadBalancer, 80), externalIP: e.external(lb.ExternalIP, 80),
	})
	add("local", all, frontends{
		localPort: externalLocal(e.nodePort()), localLB: externalLocal(e.external(lb.LoadBalancer, 80)),
		localExternal: externalLocal(e.external(lb.ExternalIP, 80)),
	})
	add("internal", all, frontends{internal: internalLocal(e.clusterIP(80))})
	add("empty", nil, frontends{
		emptyIP: e.clusterIP(80), emptyPort: e.nodePort(), emptyLB: e.external(lb.LoadBalancer, 80),
	})
	add("drained", []lb.Backend{weighted(e.backend(0), 0), weighted(e.backend(1), 0)}, frontends{drainedIP: e.clusterIP(80)})
	add("self", one, frontends{selfIP: e.clusterIP(80), selfPort: e.nodePort()})
	if e.h.Supports(FeatureRemote) {
		add("away", remote(all), frontends{
			awayPort: externalLocal(e.nodePort()), awayLB: externalLocal(e.external(lb.LoadBalancer, 80)),
			internalAway: internalLocal(e.clusterIP(80)),
		})
	}
	w.to[otherPort] = netip.AddrPortFrom(w.to[clusterIP].Addr(), 81)
	w.to[otherNodePort] = e.nodePort().Addr
	w.to[nobodysIP] = e.clusterIP(80).Addr
	return w
}

// source is whose address a backend should see.
type source string

const (
	anySource source = ""
	client    source = "the client's"
	node      source = "the node's"
	socket    source = "a socket's" // the client's where sockets are translated, else the node's
)

// reachRow is one row: who gets which answer at a target.
type reachRow struct {
	target string
	from   []Origin
	want   Verdict
	who    func([]lb.Backend) []lb.Backend // of all backends; nil is all
	source source
}

func first(bs []lb.Backend) []lb.Backend { return bs[:1] }

var (
	inside   = []Origin{PodHooked, PodUnhooked, Node}
	everyone = []Origin{PodHooked, PodUnhooked, Node, Outside}
)

var reachRows = []reachRow{
	{clusterIP, []Origin{PodHooked, PodUnhooked}, OK, nil, client},
	{clusterIP, []Origin{Node}, OK, nil, anySource},
	{clusterIP, []Origin{Outside}, OK, nil, node},

	// Traffic policy Cluster. Sockets that are translated are never masqueraded.
	{nodePort, []Origin{PodHooked}, OK, nil, socket},
	{nodePort, []Origin{Node}, OK, nil, anySource},
	{nodePort, []Origin{PodUnhooked, Outside}, OK, nil, node},
	{loadBalancer, []Origin{PodHooked}, OK, nil, socket},
	{loadBalancer, []Origin{Node}, OK, nil, anySource},
	{loadBalancer, []Origin{PodUnhooked, Outside}, OK, nil, node},
	{externalIP, []Origin{PodHooked}, OK, nil, socket},
	{externalIP, []Origin{Node}, OK, nil, anySource},
	{externalIP, []Origin{PodUnhooked, Outside}, OK, nil, node},

	// Traffic policy Local: outside meets only what runs here, and keeps its
	// address; inside meets all.
	{localPort, []Origin{Outside}, OK, local, client},
	{localPort, []Origin{PodHooked, PodUnhooked}, OK, nil, client},
	{localPort, []Origin{Node}, OK, nil, anySource},
	{localLB, []Origin{Outside}, OK, local, client},
	{localLB, []Origin{PodHooked, PodUnhooked}, OK, nil, client},
	{localLB, []Origin{Node}, OK, nil, anySource},
	{localExternal, []Origin{Outside}, OK, local, client},
	{localExternal, []Origin{PodHooked, PodUnhooked}, OK, nil, client},
	{localExternal, []Origin{Node}, OK, nil, anySource},
	{awayPort, []Origin{Outside}, Dropped, nil, anySource},
	{awayPort, []Origin{PodHooked, PodUnhooked}, OK, remote, client},
	{awayLB, []Origin{Outside}, Dropped, nil, anySource},
	{awayLB, []Origin{Node}, OK, remote, anySource},
	{internal, []Origin{PodHooked, PodUnhooked}, OK, local, client},
	{internal, []Origin{Node}, OK, local, anySource},
	{internalAway, inside, Dropped, nil, anySource},

	{emptyIP, everyone, Refused, nil, anySource},
	{emptyPort, everyone, Refused, nil, anySource},
	{emptyLB, everyone, Refused, nil, anySource},
	{drainedIP, everyone, Refused, nil, anySource},

	{selfIP, []Origin{Self}, OK, first, anySource},
	{selfPort, []Origin{Self}, OK, first, anySource},

	{otherPort, []Origin{PodHooked, PodUnhooked, Outside}, Refused, nil, anySource},
	{nobodysIP, everyone, Untouched, nil, anySource},
	{otherNodePort, everyone, Untouched, nil, anySource},
}

func runReach(t *testing.T, e *env) {
	e.dp = e.h.Dataplane(t)
	w := e.world(t)
	e.sync(t, dataplane.Delta{Put: w.svcs, Full: true})
	for _, row := range reachRows {
		for _, from := range row.from {
			t.Run(row.target+" from "+string(from), func(t *testing.T) {
				e.need(t, Feature(from))
				to, ok := w.to[row.target]
				if !ok {
					e.need(t, FeatureRemote)
				}
				for _, addr := range e.each(to) {
					e.check(t, row, from, addr)
				}
			})
		}
	}
	e.localhost(t, w)
	t.Run(otherPort+" from node", func(t *testing.T) {
		e.need(t, Feature(Node))
		e.fails(t, Node, w.to[otherPort], e.unknown(Node, e.proto))
	})
	t.Run("another protocol at a cluster IP", func(t *testing.T) {
		e.need(t, FeatureTCP, FeatureUDP)
		for _, from := range everyone {
			if !e.h.Supports(Feature(from)) {
				continue
			}
			want := e.unknown(from, lb.TCP+lb.UDP-e.proto)
			f := Flow{From: from, To: w.to[clusterIP], Proto: lb.TCP + lb.UDP - e.proto, N: 1, Silence: want != Refused}
			if got := e.h.Try(t, f); got.Verdict == OK || want == Refused && got.Verdict != Refused {
				t.Errorf("%s: %s by %v, want %s", f, got.Verdict, got.Backends, want)
			}
		}
	})
}

// unknown returns what a caller gets at a port that a cluster IP has not. Where sockets
// are translated a process of the node may connect one for UDP there, and then gets
// silence.
func (e *env) unknown(from Origin, proto lb.Proto) Verdict {
	if from == Node && proto == lb.UDP && e.h.Supports(FeatureSocketPath) {
		return Untouched
	}
	return Refused
}

// localhost checks that a node port answers at the node's own loopback address, or that
// it does not, if the harness cannot do that.
func (e *env) localhost(t *testing.T, w *world) {
	t.Run("node port on localhost from node", func(t *testing.T) {
		addr, feature := netip.MustParseAddr("127.0.0.1"), FeatureLocalhost4
		if e.fam == lb.IPv6 {
			addr, feature = netip.IPv6Loopback(), FeatureLocalhost6
		}
		e.need(t, Feature(Node))
		to := netip.AddrPortFrom(addr, w.to[nodePort].Port())
		if !e.h.Supports(feature) {
			e.fails(t, Node, to, Untouched)
			return
		}
		e.reaches(t, Node, to, e.all()...)
	})
}

// each returns where to dial for to: a node port at every address of the node.
func (e *env) each(to netip.AddrPort) []netip.AddrPort {
	if !to.Addr().IsUnspecified() {
		return []netip.AddrPort{to}
	}
	var addrs []netip.AddrPort
	for _, a := range e.addrs.Node {
		if lb.FamilyOf(a) == e.fam {
			addrs = append(addrs, netip.AddrPortFrom(a, to.Port()))
		}
	}
	return addrs
}

// on returns where a frontend is dialled: a node port at the first node address.
func (e *env) on(fe lb.Frontend) netip.AddrPort { return e.each(fe.Addr)[0] }

func (e *env) check(t *testing.T, row reachRow, from Origin, to netip.AddrPort) {
	t.Helper()
	if row.want != OK {
		e.fails(t, from, to, row.want)
		return
	}
	want := e.all()
	if row.who != nil {
		want = row.who(want)
	}
	got := e.reaches(t, from, to, want...)
	if row.source == anySource || !e.h.Supports(FeatureSeen) {
		return
	}
	allowed := e.addrs.Sources[from]
	if row.source == node || row.source == socket && !e.h.Supports(FeatureSocketPath) {
		allowed = e.addrs.Sources[Node]
	}
	if got.Verdict == OK && len(got.Seen) == 0 {
		t.Errorf("from %s to %s: the harness tells no source", from, to)
	}
	for _, seen := range got.Seen {
		if !slices.Contains(allowed, seen) {
			t.Errorf("from %s to %s: the backend saw %s, want %s address, of %v", from, to, seen, row.source, allowed)
		}
	}
}
