// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// drainRow is one thing that happens to backend 0, which has a connection or a flow.
type drainRow struct {
	name string
	next func(e *env, svc *dataplane.Service) // what the Service becomes; it has backend 1
	tcp  Fate
	udp  Fate
}

// Fate is what becomes of a connection.
type Fate string

// The fates.
const (
	Stays Fate = "stays"
	Moves Fate = "moves" // of a socket that cannot move: it is destroyed
	Ends  Fate = "ends"
)

func draining(e *env, svc *dataplane.Service) {
	svc.Terms.Draining = []netip.AddrPort{e.backend(0).Addr}
}

var drainRows = []drainRow{
	{"drains", draining, Stays, Stays},
	{"is gone", func(*env, *dataplane.Service) {}, Stays, Moves},
	{"drains, with reset", func(e *env, svc *dataplane.Service) {
		svc.Terms.Reset = true
		draining(e, svc)
	}, Stays, Stays},
	{"is gone, with reset", func(_ *env, svc *dataplane.Service) { svc.Terms.Reset = true }, Ends, Moves},
}

func runDrain(t *testing.T, e *env) {
	e.dp = e.h.Dataplane(t)
	for _, from := range e.paths() {
		for _, row := range drainRows {
			t.Run("the backend "+row.name+", from "+string(from), func(t *testing.T) {
				e.need(t, Feature(from))
				e.sync(t, dataplane.Delta{Full: true})
				fe := e.clusterIP(80)
				before, after := e.service(t, "a", e.backends(0), fe), e.service(t, "a", e.backends(1), fe)
				row.next(e, after)
				before.Terms.Reset = after.Terms.Reset
				e.put(t, before)
				want := row.tcp
				if e.proto == lb.UDP {
					want = row.udp
				}
				e.through(t, want, from, fe.Addr, func() { e.put(t, after) })
				e.reaches(t, from, fe.Addr, e.backend(1))
			})
		}
	}
	for _, from := range e.paths() {
		t.Run("flows of a weight that becomes 0 stay, from "+string(from), func(t *testing.T) {
			e.afterwards(t, Stays, from, func(e *env, fe lb.Frontend) {
				e.put(t, e.service(t, "a", []lb.Backend{weighted(e.backend(0), 0), e.backend(1)}, fe))
			})
		})
		t.Run("flows of a backend that is left in the local pool stay, from "+string(from), func(t *testing.T) {
			e.afterwards(t, Stays, from, func(e *env, fe lb.Frontend) {
				svc := e.service(t, "a", e.backends(1), fe, e.internalPort(fe))
				svc.Local = pool(t, "round-robin", e.backends(0))
				e.put(t, svc)
			})
		})
		t.Run("flows of a drained backend that is gone at last move, from "+string(from), func(t *testing.T) {
			e.afterwards(t, Moves, from, func(e *env, fe lb.Frontend) {
				svc := e.service(t, "a", e.backends(1), fe)
				draining(e, svc)
				e.put(t, svc)
				e.put(t, e.service(t, "a", e.backends(1), fe))
			})
		})
		t.Run("flows of a service that is deleted end, from "+string(from), func(t *testing.T) {
			e.afterwards(t, Ends, from, func(e *env, _ lb.Frontend) {
				e.sync(t, dataplane.Delta{Delete: []lb.ServiceName{e.name("a")}})
			})
		})
	}
}

// internalPort returns a frontend beside fe that uses the local pool.
func (e *env) internalPort(fe lb.Frontend) lb.Frontend {
	return internalLocal(e.at(netip.AddrPortFrom(fe.Addr.Addr(), fe.Addr.Port()+1), lb.ClusterIP))
}

// afterwards holds a UDP flow to backend 0 and checks what becomes of it.
func (e *env) afterwards(t *testing.T, want Fate, from Origin, change func(e *env, fe lb.Frontend)) {
	t.Helper()
	if e.proto != lb.UDP {
		return
	}
	e.need(t, Feature(from))
	e.sync(t, dataplane.Delta{Full: true})
	fe := e.clusterIP(80)
	e.put(t, e.service(t, "a", e.backends(0), fe))
	e.through(t, want, from, fe.Addr, func() { change(e, fe) })
}

func (e *env) through(t *testing.T, want Fate, from Origin, to netip.AddrPort, change func()) {
	t.Helper()
	e.need(t, FeatureHeld, FeatureFlows)
	Through(t, e.h, Flow{From: from, To: to, Proto: e.proto, N: 1}, want, change)
}

// limit bounds the wait for what should happen soon.
const limit = 10 * time.Second

// Through opens a connection or a UDP flow and checks what change does to it.
func Through(t *testing.T, h Harness, f Flow, want Fate, change func()) {
	t.Helper()
	if f.Proto == lb.UDP {
		flowThrough(t, h, f, want, change)
		return
	}
	c := h.Open(t, f)
	change()
	if want == Stays {
		defer c.Close() // what was reset has ended
		for range 3 {
			if err := c.Check(); err != nil {
				t.Fatalf("%s: the connection with %s broke: %v", f, c.Backend, err)
			}
		}
		return
	}
	for deadline := time.Now().Add(limit); c.Check() == nil; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: the connection with %s, which is gone, was never reset", f, c.Backend)
		}
	}
}

func flowThrough(t *testing.T, h Harness, f Flow, want Fate, change func()) {
	t.Helper()
	holder, ok := h.(FlowHolder)
	if !ok {
		t.Fatalf("%T is no FlowHolder", h)
	}
	held := holder.OpenFlow(t, f)
	defer held.Close()
	change()
	if want == Stays {
		for range 3 {
			if be, err := held.Again(false); err != nil || be != held.Backend {
				t.Fatalf("%s: %s answered (%v), want %s", f, be, err, held.Backend)
			}
		}
		return
	}
	ended := want == Ends || held.Connected
	for deadline := time.Now().Add(limit); ; <-time.After(time.Millisecond) {
		be, err := held.Again(ended)
		switch {
		case ended && err != nil, !ended && err == nil && be != held.Backend:
			return
		case err == nil && be != held.Backend, time.Now().After(deadline):
			t.Fatalf("%s: the flow to %s, which is gone, is answered by %s (%v)", f, held.Backend, be, err)
		case !held.Connected:
			// Only the destruction of sockets takes place after the Sync.
			t.Fatalf("%s: the next datagram was answered by %s (%v), want that the flow %s", f, be, err, want)
		}
	}
}
