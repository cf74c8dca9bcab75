// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestCatchingUp: a backend whose slow start is over goes on with it as long as it
// has fewer connections than its peers, if the algorithm would send all new ones to it.
func TestCatchingUp(t *testing.T) {
	for _, tc := range []struct {
		name, algorithm string
		live            map[string]uint64 // from the 25th second on
		end             time.Duration     // of the slow start
	}{
		{"it has as many as its peers", "least-connection", map[string]uint64{one: 30, two: 10, three: 20}, 25 * time.Second},
		{"it has as many for its latency", "least-time", map[string]uint64{one: 20, two: 20, three: 20}, 25 * time.Second},
		{"it never has", "power-of-two", map[string]uint64{one: 20, two: 20, three: 19}, catchUp * shortly},
		{"nobody has any", "least-connection", nil, 25 * time.Second},
		{"nobody looks at connections", "round-robin", map[string]uint64{one: 20, two: 20}, shortly},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, after := slow(shortly, "a", one, two), slow(shortly, "a", one, two, three)
			before.Balance.Algorithm, after.Balance.Algorithm = tc.algorithm, tc.algorithm
			inBubble(t, func(r *rig) {
				r.setLive(map[string]uint64{one: 20, two: 20})
				r.source.set("a", after)
				r.pass(25*time.Second - time.Millisecond)
				r.setLive(tc.live)
				r.pass(time.Hour)
				calls := r.since(1)
				last := calls[len(calls)-1]
				r.compiled(last, after, nil)
				if late := last.at - tc.end; late < 0 || late > 200*time.Millisecond {
					t.Errorf("its slow start ended at %v, want %v", last.at, tc.end)
				}
				r.steady(1 + len(calls))
			}, before)
		})
	}
}

// TestCatchingUpInEitherPool: a pool is balanced on its own, so a backend stays in its
// slow start as long as it is behind the peers of one.
func TestCatchingUpInEitherPool(t *testing.T) {
	const remotes = 9
	many := []string{one}
	for i := range remotes {
		many = append(many, fmt.Sprintf("10.244.1.%d:80", i+1))
	}
	for _, tc := range []struct {
		name           string
		cluster, local []string // two is the new one of either
		live           map[string]uint64
		want           int // starters of the local pool after the slow start
	}{
		{"only local, behind", nil, []string{one, three}, map[string]uint64{one: 100, three: 100, two: 99}, 1},
		{"only local, level", nil, []string{one, three}, map[string]uint64{one: 100, three: 100, two: 100}, 0},
		{"behind the local peer", many, []string{one}, map[string]uint64{one: 100, two: 10}, 1},
		{"level with the mean of all", many, []string{one}, map[string]uint64{one: 10, two: 10}, 0},
		{"not in the pool of those with more", []string{one, three}, []string{one}, map[string]uint64{three: 100, one: 10, two: 10}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pools := func(cluster, local []string) *lb.Service {
				svc := slow(shortly, "a", cluster...)
				svc.Balance.Algorithm = "least-connection"
				svc.Local.Backends = service("a", local...).Cluster.Backends
				return svc
			}
			with := func(addrs []string) []string {
				if addrs == nil {
					return nil
				}
				return append(slices.Clone(addrs), two)
			}
			inBubble(t, func(r *rig) {
				r.setLive(tc.live)
				r.source.set("a", pools(with(tc.cluster), with(tc.local)))
				r.pass(shortly + 5*time.Second)
				calls := r.since(0)
				last := calls[len(calls)-1]
				if got := len(last.delta.Put[0].Local.Table.Starters); got != tc.want {
					t.Errorf("at %v the local pool has %d starters, want %d", last.at, got, tc.want)
				}
				r.pass(catchUp * shortly)
				r.steady(len(r.since(0)))
			}, pools(tc.cluster, tc.local))
		})
	}
}
