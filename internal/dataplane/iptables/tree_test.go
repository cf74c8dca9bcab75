// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// follow returns the end of the rule that takes packets for k, and how many rules were
// looked at. It understands what trees render, and nothing else.
func follow(t *testing.T, chains map[string][]string, root string, k lb.FrontendKey) (end string, looked int) {
	t.Helper()
	for name := root; ; {
		next := ""
		for _, r := range chains[name] {
			looked++
			match, target, ok := strings.Cut(r, "-g ")
			if !ok {
				t.Fatalf("chain %s: rule %q leads nowhere", name, r)
			}
			if matches(t, match, k) {
				next = target
				break
			}
		}
		if next == "" || !strings.HasPrefix(next, "LBP-T-") {
			return next, looked
		}
		name = next
	}
}

// matches tells whether a packet for k has the match.
func matches(t *testing.T, match string, k lb.FrontendKey) bool {
	t.Helper()
	f := strings.Fields(match)
	for i := 0; i < len(f); i += 2 {
		ok := true
		switch f[i] {
		case "-d":
			ok = netip.MustParsePrefix(f[i+1]).Contains(k.Addr.Addr())
		case "-p":
			ok = f[i+1] == strings.ToLower(k.Proto.String())
		case "-m":
		case "--dport":
			first, last, _ := strings.Cut(f[i+1]+":"+f[i+1], ":")
			last, _, _ = strings.Cut(last, ":")
			from, err := strconv.Atoi(first)
			if err != nil {
				t.Fatal(err)
			}
			to, err := strconv.Atoi(last)
			if err != nil {
				t.Fatal(err)
			}
			ok = from <= int(k.Addr.Port()) && int(k.Addr.Port()) <= to
		default:
			t.Fatalf("unknown match %q", f[i])
		}
		if !ok {
			return false
		}
	}
	return true
}

// kernelChains is what the kernel has after the changes that it was told.
type kernelChains map[string][]string

func (k kernelChains) apply(t *testing.T, put []chain, del []string) {
	t.Helper()
	for _, c := range put {
		k[c.name] = c.rules
	}
	for _, name := range del {
		if _, ok := k[name]; !ok {
			t.Fatalf("chain %s is removed, and was not there", name)
		}
		delete(k, name)
	}
	for name, rules := range k {
		for _, r := range rules {
			if _, to, _ := strings.Cut(r, "-g "); strings.HasPrefix(to, "LBP-T-") && k[to] == nil {
				t.Fatalf("chain %s leads to %s, which is not there", name, to)
			}
		}
	}
}

func vipTree(f lb.Family) *tree {
	return newTree(hashName("T-", "vips"), f, true, func(p netip.Prefix) string { return "-d " + p.String() })
}

// somewhere returns a random frontend: addresses are near each other or far away, some
// have many ports.
func somewhere(r *rand.Rand, f lb.Family) lb.FrontendKey {
	port, proto := uint16(80+r.IntN(2)), []lb.Proto{lb.TCP, lb.UDP, lb.SCTP}[r.IntN(3)]
	raw := netip.MustParseAddr("10.96.0.0").AsSlice()
	if f == lb.IPv6 {
		raw = netip.MustParseAddr("fd00:10:96::").AsSlice()
	}
	n := len(raw)
	switch r.IntN(4) {
	case 0: // one address with many ports
		port, proto = uint16(r.Uint32()), lb.TCP
		raw[n-1] = 1
	case 1:
		for i := range raw {
			raw[i] = byte(r.Uint32())
		}
	default:
		raw[n-1], raw[n-2] = byte(r.Uint32()), byte(r.IntN(8))
	}
	a, _ := netip.AddrFromSlice(raw)
	return lb.FrontendKey{Addr: netip.AddrPortFrom(a, port), Proto: proto}
}

// TestTreeLeadsToEveryEntry changes a tree at random: after each change every frontend
// is found, others are not, and the chains are those of a tree that is made at once.
func TestTreeLeadsToEveryEntry(t *testing.T) {
	for _, f := range families {
		t.Run(f.String(), func(t *testing.T) {
			r := rand.New(rand.NewPCG(5, uint64(f)))
			tr, have, kernel := vipTree(f), map[lb.FrontendKey]string{}, kernelChains{}
			kernel.apply(t, tr.all(), nil)
			for round := range 120 {
				puts := map[spot]string{}
				for range 1 + r.IntN(40) {
					k := somewhere(r, f)
					end := fmt.Sprintf("-g LBP-E-%d", r.Uint32())
					if round%40 > 25 && len(have) > 0 { // it shrinks
						k = slices.SortedFunc(maps.Keys(have), compareKeys)[r.IntN(len(have))]
						end = ""
					}
					puts[frontendSpot(k)] = end
					have[k] = strings.TrimPrefix(end, "-g ")
					if end == "" {
						delete(have, k)
					}
				}
				put, del := tr.set(puts)
				kernel.apply(t, put, del)
				checkTree(t, tr, kernel, have, f, r)
			}
		})
	}
}

func compareKeys(a, b lb.FrontendKey) int { return strings.Compare(a.String(), b.String()) }

func checkTree(t *testing.T, tr *tree, kernel kernelChains, have map[lb.FrontendKey]string, f lb.Family, r *rand.Rand) {
	t.Helper()
	for k, want := range have {
		if got, _ := follow(t, kernel, tr.name, k); got != want {
			t.Fatalf("%s leads to %q, want %q", k, got, want)
		}
	}
	for range 20 {
		k := somewhere(r, f)
		if got, _ := follow(t, kernel, tr.name, k); got != have[k] {
			t.Fatalf("%s leads to %q, want %q", k, got, have[k])
		}
	}
	anew := vipTree(f)
	anew.update(entriesOf(have))
	want := kernelChains{}
	want.apply(t, anew.all(), nil)
	if !maps.EqualFunc(kernel, want, slices.Equal[[]string]) {
		t.Fatalf("%d chains after changes, %d when made at once, or other rules", len(kernel), len(want))
	}
}

// TestTreeMovesDown has a tree of as many levels as there may be, which gets one more on
// top, and loses it again.
func TestTreeMovesDown(t *testing.T) {
	tr, have, kernel := vipTree(lb.IPv4), map[lb.FrontendKey]string{}, kernelChains{}
	change := func(k lb.FrontendKey, end string) {
		put, del := tr.set(map[spot]string{frontendSpot(k): end})
		kernel.apply(t, put, del)
		if have[k] = strings.TrimPrefix(end, "-g "); end == "" {
			delete(have, k)
		}
	}
	at := func(a netip.Addr, port uint16) lb.FrontendKey {
		return lb.FrontendKey{Addr: netip.AddrPortFrom(a, port), Proto: lb.TCP}
	}
	for digit := 1; digit < 8; digit++ { // each has addresses that share those before it
		for other := range byte(16) {
			raw := [4]byte{10, 96, 0, 1}
			raw[digit/2] ^= other << (4 * (1 - digit%2))
			for port := range uint16(2) {
				change(at(netip.AddrFrom4(raw), 80+port), "-g LBP-E-1")
			}
		}
	}
	r := rand.New(rand.NewPCG(5, 6))
	checkTree(t, tr, kernel, have, lb.IPv4, r)
	above := at(netip.MustParseAddr("172.16.0.1"), 80)
	change(above, "-g LBP-E-2")
	checkTree(t, tr, kernel, have, lb.IPv4, r)
	change(above, "")
	checkTree(t, tr, kernel, have, lb.IPv4, r)
}

func entriesOf(have map[lb.FrontendKey]string) map[spot]string {
	out := map[spot]string{}
	for k, to := range have {
		out[frontendSpot(k)] = "-g " + to
	}
	return out
}

// TestTreeIsShallow bounds how many rules a first packet meets, and how many chains one
// change writes, where kube-proxy has one rule for each Service.
func TestTreeIsShallow(t *testing.T) {
	for _, row := range []struct{ services, looked, written int }{
		{1, 1, 1}, {16, 16, 2}, {1000, 40, 4}, {10_000, 55, 5}, {44_000, 64, 5},
	} {
		tr, kernel := vipTree(lb.IPv4), kernelChains{}
		at := func(i int) lb.FrontendKey {
			a := netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})
			return lb.FrontendKey{Addr: netip.AddrPortFrom(a, 80), Proto: lb.TCP}
		}
		puts := map[spot]string{}
		for i := range row.services {
			puts[frontendSpot(at(i))] = "-g LBP-E"
		}
		tr.update(puts)
		kernel.apply(t, tr.all(), nil)
		most := 0
		for i := range row.services {
			_, looked := follow(t, kernel, tr.name, at(i))
			most = max(most, looked)
		}
		put, _ := tr.set(map[spot]string{frontendSpot(at(row.services)): "-g LBP-E"})
		t.Logf("%d Services: at most %d rules, %d chains, %d written for one more", row.services, most, len(kernel), len(put))
		if most > row.looked || len(put) > row.written {
			t.Errorf("%d Services: a packet meets up to %d rules and one more Service writes %d chains, want at most %d and %d",
				row.services, most, len(put), row.looked, row.written)
		}
	}
}
