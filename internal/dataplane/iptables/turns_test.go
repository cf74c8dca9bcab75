// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestTurnsAreThoseOfTheTable: with up to 64 turns in a round, each connection goes where
// the table says.
func TestTurnsAreThoseOfTheTable(t *testing.T) {
	for _, weights := range [][]uint16{{1}, {1, 1, 1}, {5, 3, 0, 1}, {4, 1}, {0, 7, 2}, make([]uint16, 64)} {
		if weights[len(weights)-1] == 0 {
			for i := range weights {
				weights[i] = 9
			}
		}
		p := newPool(t, "round-robin", lb.IPv4, upTo(len(weights)), weights)
		tr := tracerOf(t, p)
		for seq := range uint32(300) {
			want := p.backends[algo.Pick(p.table, algo.Input{Seq: seq})].Addr
			if got := tr.walk(p.name, &packet{family: lb.IPv4, proto: lb.TCP}).to; got != want {
				t.Fatalf("weights %v: connection %d goes to %s, want %s", weights, seq, got, want)
			}
		}
	}
}

// TestTurnsWithinGroups: of more than 64 equal backends, each gets its share, and none
// twice before all others of its group had their turn.
func TestTurnsWithinGroups(t *testing.T) {
	p := newPool(t, "round-robin", lb.IPv4, upTo(200), nil)
	tr := tracerOf(t, p)
	shares, _ := odds(t, tr, p.name)
	for _, b := range p.backends {
		if got := shares[b.Addr] * 200; got < 0.99999 || got > 1.00001 {
			t.Errorf("backend %s gets %.6f of its share", b.Addr, got)
		}
	}
	seen := map[string]map[netip.AddrPort]int{} // by chain
	for range 10000 {
		v := tr.walk(p.name, &packet{family: lb.IPv4, proto: lb.TCP})
		var group string
		for _, step := range v.steps {
			if r, err := parseRule(step); err == nil && r.chain != "" {
				group = r.chain
			}
		}
		if seen[group] == nil {
			seen[group] = map[netip.AddrPort]int{}
		}
		seen[group][v.to]++
		low, high := 1<<30, 0
		for _, r := range tr.chains[group] {
			low, high = min(low, seen[group][r.to]), max(high, seen[group][r.to])
		}
		if high-low > 1 {
			t.Fatalf("group %s: %d and %d connections", group, low, high)
		}
	}
}
