// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	// digitBits is how many bits of an address one chain decides by. With 2 a packet meets
	// half as many rules, and it takes longer: what costs is memory that is not in a
	// cache, and each chain is somewhere else.
	digitBits = 4
	leafRules = 16 // entries that share one chain of a tree at most
	maxLevels = 7  // chains in a row; the lowest ones have all that is left. nf_tables takes 16 in a row, with those before and behind a tree
)

// spot is where an entry of a tree is: its digits, each of digitBits, as bytes from the
// most significant one.
type spot string

// digits appends the n lowest digits of v.
func digits(to []byte, v uint32, n int) []byte {
	for i := n - 1; i >= 0; i-- {
		to = append(to, byte(v>>(digitBits*i))&(1<<digitBits-1))
	}
	return to
}

func addrDigits(to []byte, a netip.Addr) []byte {
	for _, b := range a.AsSlice() {
		to = digits(to, uint32(b), 8/digitBits)
	}
	return to
}

// protos are the protocols by their digits.
var protos = [...]lb.Proto{lb.TCP, lb.UDP, lb.SCTP}

func portDigits(to []byte, proto lb.Proto, port uint16) []byte {
	return digits(append(to, byte(slices.Index(protos[:], proto))), uint32(port), 16/digitBits)
}

// frontendSpot is the spot of a frontend among the addresses of Services; that of a
// node port has no address.
func frontendSpot(k lb.FrontendKey) spot {
	var d []byte
	if !k.Addr.Addr().IsUnspecified() {
		d = addrDigits(d, k.Addr.Addr())
	}
	return spot(portDigits(d, k.Proto, k.Addr.Port()))
}

// tree leads packets to the entry with their address, protocol and port through chains
// of few rules each: a chain with more than leafRules entries is divided by the first
// digit in which they differ. What its chains are depends on nothing but its entries.
type tree struct {
	name    string // of its root chain; others are named after it
	addrs   int    // digits that are an address
	family  lb.Family
	match   func(p netip.Prefix) string // how rules ask for an address
	entries []treeEntry                 // sorted by spot

	kids   map[string][]string // of each chain, as rendered last
	shapes map[string]shape    // of what is below each chain then
}

// shape is what has to be known of a chain to leave it as it is when its level changes.
type shape struct {
	height int  // chains in a row, with itself
	cut    bool // one of them has more entries than leafRules, for want of levels
}

// fits tells whether chains of a shape are the same when the first one is in a level.
func (s shape) fits(level int) bool { return s.height > 0 && !s.cut && level+s.height-1 <= maxLevels }

type treeEntry struct {
	spot spot
	end  string // what a rule ends with, after the match of the spot
}

// newTree returns a tree without entries. addrs says whether its spots begin with an
// address of f, for which match is a rule's part.
func newTree(name string, f lb.Family, addrs bool, match func(netip.Prefix) string) *tree {
	t := &tree{name: name, family: f, match: match, kids: map[string][]string{}, shapes: map[string]shape{}}
	if addrs {
		t.addrs = f.Unspecified().BitLen() / digitBits
	}
	return t
}

func (t *tree) find(s spot) (int, bool) {
	return slices.BinarySearchFunc(t.entries, s, func(e treeEntry, s spot) int { return cmp.Compare(e.spot, s) })
}

// set gives the spots of puts their ends, an empty one removes it, and returns the
// chains that changed: those to write, and those that are no more.
func (t *tree) set(puts map[spot]string) (put []chain, del []string) {
	if len(puts) == 0 {
		return nil, nil
	}
	dirty := map[string]spot{}
	t.touch(puts, dirty)
	t.update(puts)
	t.touch(puts, dirty)
	return t.redo(dirty)
}

// current returns the end that a spot has, or "".
func (t *tree) current(s spot) string {
	if i, ok := t.find(s); ok {
		return t.entries[i].end
	}
	return ""
}

// all returns every chain anew.
func (t *tree) all() []chain {
	t.kids, t.shapes = map[string][]string{}, map[string]shape{}
	put, _ := t.redo(map[string]spot{t.name: ""})
	return put
}

// update changes the entries. Many are sorted in at once.
func (t *tree) update(puts map[spot]string) {
	var added []treeEntry
	gone := map[spot]bool{}
	for s, end := range puts {
		i, ok := t.find(s)
		switch {
		case end == "":
			gone[s] = ok
		case ok:
			t.entries[i].end = end
		default:
			added = append(added, treeEntry{s, end})
		}
	}
	t.entries = slices.DeleteFunc(t.entries, func(e treeEntry) bool { return gone[e.spot] })
	t.entries = append(t.entries, added...)
	if len(added) > 0 {
		slices.SortFunc(t.entries, func(a, b treeEntry) int { return cmp.Compare(a.spot, b.spot) })
	}
}

// touch notes the chains on the way to each spot.
func (t *tree) touch(puts map[spot]string, dirty map[string]spot) {
	for s := range puts {
		at, list := spot(""), t.entries
		for level := 1; ; level++ {
			dirty[t.chainName(at)] = at
			if len(list) <= leafRules || level == maxLevels {
				break
			}
			next := common(list) + 1
			if len(s) < next || len(list[0].spot) < next || s[:next-1] != list[0].spot[:next-1] {
				break
			}
			at = s[:next]
			list = below(list, at)
			if len(list) < 2 {
				break
			}
		}
	}
}

// redo renders the chains of dirty that exist and what is new below them.
func (t *tree) redo(dirty map[string]spot) (put []chain, del []string) {
	before := map[string]bool{} // chains that somebody referred to
	fresh := map[string]bool{}
	var render func(at spot, level int)
	render = func(at spot, level int) {
		name := t.chainName(at)
		if fresh[name] {
			return
		}
		fresh[name] = true
		for _, k := range t.kids[name] {
			before[k] = true
		}
		c, kids := t.render(at, level)
		put = append(put, c)
		t.kids[name] = nil
		is := shape{height: 1, cut: len(c.rules) > leafRules && len(kids) == 0}
		for _, k := range kids {
			kid := t.chainName(k)
			if _, isDirty := dirty[kid]; isDirty || !t.shapes[kid].fits(level+1) {
				render(k, level+1)
			}
			t.kids[name] = append(t.kids[name], kid)
			is = shape{max(is.height, 1+t.shapes[kid].height), is.cut || t.shapes[kid].cut}
		}
		t.shapes[name] = is
	}
	render("", 1)
	del = t.orphans(before)
	slices.SortFunc(put, func(a, b chain) int { return strings.Compare(a.name, b.name) })
	return put, del
}

// orphans returns those of before, and what is below them, that nobody refers to.
func (t *tree) orphans(before map[string]bool) (del []string) {
	if len(before) == 0 {
		return nil
	}
	reached := map[string]bool{}
	var reach func(name string)
	reach = func(name string) {
		reached[name] = true
		for _, k := range t.kids[name] {
			reach(k)
		}
	}
	reach(t.name)
	for name := range t.kids {
		if !reached[name] {
			del = append(del, name)
		}
	}
	for _, name := range del {
		delete(t.kids, name)
		delete(t.shapes, name)
	}
	slices.Sort(del)
	return del
}

func (t *tree) chainName(at spot) string {
	if at == "" {
		return t.name
	}
	return hashName("T-", t.name, string(at))
}

// render returns the chain for the entries below at, which is in a level from 1 on, and
// where it leads.
func (t *tree) render(at spot, level int) (c chain, kids []spot) {
	c.name = t.chainName(at)
	list := below(t.entries, at)
	if len(list) <= leafRules || level == maxLevels {
		for _, e := range list {
			c.rules = append(c.rules, t.rule(e.spot, e.end))
		}
		return c, nil
	}
	next := common(list) + 1
	for len(list) > 0 {
		kid := list[0].spot[:next]
		part := below(list, kid)
		if len(part) == 1 {
			c.rules = append(c.rules, t.rule(part[0].spot, part[0].end))
		} else {
			c.rules = append(c.rules, t.rule(kid, "-g "+t.chainName(kid)))
			kids = append(kids, kid)
		}
		list = list[len(part):]
	}
	return c, kids
}

// below returns the entries whose spots begin with at.
func below(list []treeEntry, at spot) []treeEntry {
	from := sort.Search(len(list), func(i int) bool { return list[i].spot >= at })
	list = list[from:]
	return list[:sort.Search(len(list), func(i int) bool { return !strings.HasPrefix(string(list[i].spot), string(at)) })]
}

// common returns how many digits all of list begin with.
func common(list []treeEntry) int {
	a, b := list[0].spot, list[len(list)-1].spot
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// rule returns the rule for packets to what s begins with.
func (t *tree) rule(s spot, end string) string {
	var parts []string
	if t.addrs > 0 {
		parts = append(parts, t.match(t.prefixOf(s[:min(len(s), t.addrs)])))
	}
	if len(s) > t.addrs {
		proto := strings.ToLower(protos[s[t.addrs]].String())
		parts = append(parts, "-p "+proto)
		if port := s[t.addrs+1:]; len(port) > 0 {
			parts = append(parts, fmt.Sprintf("-m %s --dport %s", proto, portRange(port)))
		}
	}
	return strings.Join(append(parts, end), " ")
}

// prefixOf returns the prefix of addresses that begin with these digits.
func (t *tree) prefixOf(s spot) netip.Prefix {
	const each = 8 / digitBits // digits of a byte
	raw := make([]byte, t.addrs/each)
	for i := range len(s) {
		raw[i/each] |= s[i] << (digitBits * (each - 1 - i%each))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(addr, digitBits*len(s))
}

// portRange returns the ports that begin with these digits: one, or first:last.
func portRange(s spot) string {
	first := 0
	for i := range len(s) {
		first = first<<digitBits | int(s[i])
	}
	open := 16 - digitBits*len(s)
	if open == 0 {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d:%d", first<<open, (first+1)<<open-1)
}
