// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"strconv"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// poolSpec is what the chains of a pool depend on.
type poolSpec struct {
	name     string // of the pool's chain
	family   lb.Family
	proto    lb.Proto
	backends []lb.Backend
	table    algo.Table
	shares   []float64          // of new connections by backend, sum 1; nil: the table decides
	balance  lb.Balance         // its HashKey and prefixes count
	seed     uint64             // of hashes, the cluster's
	bpf      bool               // xt_bpf is there
	to       func(i int) string // how the rule for backend i ends: "-j DNAT --to-destination 10.0.0.1:80" or "-g LBP-B-0123456789abcdef"
}

// groupMembers is how many backends a chain of a big pool has on average, at most. A
// pool with no more is one chain.
const groupMembers = 16

// maxFanBits is the binary logarithm of how many chains follow one of a big pool, at
// most, so that the walk through 5,000 backends is about 20 rules long.
const maxFanBits = 4

// renderPool returns the chain of a pool, without a comment, and those below it. It has
// no rules if nobody can be picked; otherwise every chain ends with a rule that always
// matches. approximation says what of the algorithm is only approximated: "" nothing.
//
// The chains of a big pool are a tree by a hash of the backends' addresses, so that a
// backend that comes or goes changes one chain of each level.
func renderPool(p poolSpec) (chains []chain, approximation string) {
	if p.table.N == 0 || p.table.Kind == algo.None {
		return []chain{{name: p.name}}, ""
	}
	r := poolRenderer{poolSpec: p}
	switch {
	case p.shares == nil && p.table.Kind == algo.Seq:
		approximation = r.turns()
	case p.shares == nil && p.table.Kind == algo.Hash && p.bpf:
		r.hashes()
	default:
		approximation = r.draws()
	}
	return r.chains, approximation
}

// poolRenderer makes the chains of one pool.
type poolRenderer struct {
	poolSpec
	chains []chain
}

// part is what a rule leads to: a backend, or the chain of a group of them.
type part struct {
	id    uint64 // of its address; of a group: of its place in the tree
	share float64
	end   string // of the rule
}

// parts returns the backends with a share of the pool.
func (r *poolRenderer) parts(shares []float64) []part {
	var parts []part
	for i, b := range r.backends {
		if shares[i] > 0 {
			parts = append(parts, part{backendID(b.Addr), shares[i], r.to(i)})
		}
	}
	return parts
}

// backendID returns a 64-bit hash of an address, the same on every node and in every
// release.
func backendID(at netip.AddrPort) uint64 {
	half := func(seed uint64) uint64 { return uint64(algo.HashSourcePort(seed, at.Addr(), uint32(at.Port()))) }
	return half(0)<<32 | half(1)
}

// draws renders shares: each rule takes its part of what the ones before left.
func (r *poolRenderer) draws() (approximation string) {
	shares := r.shares
	if shares == nil {
		shares = algo.Shares(r.table)
	}
	parts := r.parts(shares)
	r.tree(r.name, parts, fanBits(len(parts)), 0, draw, draw)
	if len(parts) < 2 {
		return ""
	}
	return r.announcement()
}

// announcement says what is approximated where shares stand for an algorithm.
func (r *poolRenderer) announcement() string {
	const loads = " by shares, recomputed each second from connections counted by conntrack"
	switch r.table.Kind {
	case algo.Seq:
		return "turns by shares: new connections go to random backends, in proportion to the weights"
	case algo.Hash:
		return "no hash, as the kernel has no xt_bpf: new connections go to random backends, in proportion to the weights"
	case algo.Least:
		return "least-connection" + loads
	case algo.Two:
		return "power-of-two" + loads
	case algo.Few:
		return "least-time" + loads + " and from latencies measured by connecting"
	case algo.None, algo.Rand:
	}
	return ""
}

// fanBits returns how many bits of the id each level of the tree of n backends looks at.
func fanBits(n int) []int {
	groups := (n + groupMembers - 1) / groupMembers
	return levels(bits.Len(uint(max(groups, 1) - 1)))
}

// levels spreads bits over as few levels as possible.
func levels(all int) []int {
	var out []int
	for left := (all + maxFanBits - 1) / maxFanBits; left > 0; left-- {
		level := (all + left - 1) / left
		out = append(out, level)
		all -= level
	}
	return out
}

// pickRules renders a choice between parts, of which there is at least one.
type pickRules func(parts []part) []string

// tree adds the chain of that name, which picks one of parts, and those below it. Level
// by level the next bits of the ids, of which used are used up, say who is in a group.
func (r *poolRenderer) tree(name string, parts []part, levels []int, used int, inner, leaf pickRules) {
	at := len(r.chains)
	r.chains = append(r.chains, chain{name: name})
	rules := leaf
	if len(levels) > 0 {
		parts, rules = r.groups(parts, levels, used, inner, leaf), inner
	}
	if len(parts) > 0 {
		r.chains[at].rules = rules(parts)
	}
}

// groups adds a tree for each group of parts and returns the groups.
func (r *poolRenderer) groups(parts []part, levels []int, used int, inner, leaf pickRules) []part {
	members := make([][]part, 1<<levels[0])
	used += levels[0]
	for _, p := range parts {
		prefix := p.id >> (64 - used) & uint64(len(members)-1)
		members[prefix] = append(members[prefix], p)
	}
	var out []part
	for _, ms := range members {
		if len(ms) == 0 {
			continue
		}
		id := uint64(used)<<32 | ms[0].id>>(64-used)
		name := hashName("G-", r.name, strconv.FormatUint(id, 16))
		group := part{id: id, end: "-g " + name}
		for _, m := range ms {
			group.share += m.share
		}
		r.tree(name, ms, levels[1:], used, inner, leaf)
		out = append(out, group)
	}
	return out
}

// draw renders a random choice in proportion to the shares. The kernel compares 31 random
// bits, and iptables prints them as a fraction with 11 digits.
func draw(parts []part) []string {
	const values = 1 << 31
	return firstOf(parts, values, func(_ part, below uint64) string {
		return fmt.Sprintf("-m statistic --mode random --probability %.11f ", float64(below)/values)
	})
}

// firstOf renders rules of which the first that matches decides, and of which the last
// always matches. match returns the beginning of the rule for a part that matches below
// of values random values.
//
// What is rounded from one part the next ones make up for: each share is off by at most
// 1/values or so.
func firstOf(parts []part, values float64, match func(p part, below uint64) string) []string {
	rest := make([]float64, len(parts)+1) // shares of the parts from there on
	for i := len(parts) - 1; i >= 0; i-- {
		rest[i] = rest[i+1] + parts[i].share
	}
	var rules []string
	left := 1.0 // of what comes to the chain comes to the next rule
	for i, p := range parts {
		below := math.Round(values * min(1, 1-rest[i+1]/rest[0]/left))
		if below == values {
			return append(rules, p.end)
		}
		if below > 0 {
			rules = append(rules, match(p, uint64(below))+p.end)
			left *= 1 - below/values
		}
	}
	return rules
}
