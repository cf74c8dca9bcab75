// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"net/netip"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// randomDials are so many that a random choice among four misses one of them
// less than once in ten million runs.
const randomDials = 64

// runBalance checks who is picked how often.
func runBalance(t *testing.T, e *env) {
	e.dp = e.h.Dataplane(t)
	for _, from := range e.paths() {
		t.Run("from "+string(from), func(t *testing.T) {
			e.need(t, Feature(from))
			e.sync(t, dataplane.Delta{Full: true})
			t.Run("round-robin takes turns", func(t *testing.T) {
				e.need(t, FeatureExactTurns)
				e.turns(t, from, e.backends(0, 1, 2), map[int]int{0: 6, 1: 6, 2: 6})
			})
			t.Run("round-robin by weight", func(t *testing.T) {
				e.need(t, FeatureExactTurns)
				bs := []lb.Backend{weighted(e.backend(0), 300), weighted(e.backend(1), 100), weighted(e.backend(2), 0)}
				e.turns(t, from, bs, map[int]int{0: 9, 1: 3})
			})
			t.Run("random reaches every backend", func(t *testing.T) {
				fe := e.clusterIP(80)
				e.put(t, e.balanced(t, "random", "a", e.backends(0, 1, 2), fe))
				e.spreads(t, from, fe.Addr, e.backends(0, 1, 2)...)
			})
			t.Run("random never takes weight 0", func(t *testing.T) {
				fe := e.clusterIP(80)
				bs := []lb.Backend{weighted(e.backend(0), 1), weighted(e.backend(1), 0), weighted(e.backend(2), 2)}
				e.put(t, e.balanced(t, "random", "a", bs, fe))
				e.spreads(t, from, fe.Addr, bs[0], bs[2])
			})
			t.Run("an update keeps the turns going", func(t *testing.T) {
				e.need(t, FeatureExactTurns)
				e.keepsTurns(t, from)
			})
		})
	}
}

// turns fails unless backend number i of a round-robin Service with bs gets
// exactly want[i] connections.
func (e *env) turns(t *testing.T, from Origin, bs []lb.Backend, want map[int]int) {
	t.Helper()
	fe := e.clusterIP(80)
	e.put(t, e.service(t, "a", bs, fe))
	n := 0
	for _, k := range want {
		n += k
	}
	f, got := e.try(t, from, fe.Addr, n)
	if got.Verdict != OK {
		t.Fatalf("%s: %s, want ok", f, got.Verdict)
	}
	for i := range bs {
		if be := e.backend(i).Addr; got.Backends[be] != want[i] {
			t.Errorf("%s: %s answered %d times, want %d: %v", f, be, got.Backends[be], want[i], got.Backends)
		}
	}
}

// keepsTurns checks that an update which changes nothing for the table does not
// start the turns anew: dials of one each between updates still reach everybody.
func (e *env) keepsTurns(t *testing.T, from Origin) {
	t.Helper()
	fe := e.clusterIP(80)
	seen := map[netip.AddrPort]int{}
	for range 3 {
		e.put(t, e.service(t, "a", e.backends(0, 1, 2), fe))
		_, got := e.try(t, from, fe.Addr, 1)
		for be, n := range got.Backends {
			seen[be] += n
		}
	}
	if len(seen) != 3 {
		t.Errorf("from %s: three dials with updates between them met %v, want three backends", from, seen)
	}
}

// spreads fails unless random picks reach all of want, and nobody else.
func (e *env) spreads(t *testing.T, from Origin, to netip.AddrPort, want ...lb.Backend) {
	t.Helper()
	f, got := e.try(t, from, to, randomDials)
	total := 0
	for _, be := range want {
		total += got.Backends[be.Addr]
		if got.Backends[be.Addr] == 0 {
			t.Errorf("%s: %s never answered: %v", f, be.Addr, got.Backends)
		}
	}
	if got.Verdict != OK || total != randomDials {
		t.Errorf("%s: %s by %v, want %d answers by %v", f, got.Verdict, got.Backends, randomDials, want)
	}
}
