// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// packet is what rules see of the first packet of a connection.
type packet struct {
	family   lb.Family
	proto    lb.Proto
	src, dst netip.AddrPort
	in       string // device that it came from; "" if the node sends it
	mark     uint32
	states   []string // that conntrack has for it; none: NEW
}

// verdict is what a walk leads to.
type verdict struct {
	target string         // that ended it: DNAT, MASQUERADE, ACCEPT, DROP, REJECT; "" none did
	to     netip.AddrPort // of DNAT
	mark   uint32
	steps  []string // texts of the rules that matched
}

// tracer follows rules as the kernel does. Turns go on from walk to walk.
type tracer struct {
	chains map[string][]rule
	inSet  func(set string, p *packet, dirs string) bool      // nil: all are empty
	change func(set string, p *packet, dirs string, add bool) // target SET; nil: nothing is changed
	local  func(netip.Addr) bool                              // tells which addresses are the node's; nil: none
	random func() uint32                                      // uniform
	turns  map[spotOfRule]uint32
	header []byte // of the packet that walks, once it is needed
	looks  int    // rules that were looked at in all walks
}

// spotOfRule is the place of a rule.
type spotOfRule struct {
	chain string
	index int
}

// newTracer returns a tracer of chains. It fails for a rule that parseRule does not know.
func newTracer(chains []chain) (*tracer, error) {
	t := &tracer{chains: map[string][]rule{}, turns: map[spotOfRule]uint32{}}
	return t, t.replace(chains)
}

// replace replaces chains: turns there begin anew.
func (t *tracer) replace(chains []chain) error {
	for _, c := range chains {
		rules := make([]rule, len(c.rules))
		for i, text := range c.rules {
			var err error
			if rules[i], err = parseRule(text); err != nil {
				return err
			}
			delete(t.turns, spotOfRule{c.name, i})
		}
		t.chains[c.name] = rules
	}
	return nil
}

// walk sends p through a chain and changes its mark. A chain that is missing is empty.
func (t *tracer) walk(name string, p *packet) verdict {
	t.header = nil
	var v verdict
	var callers []spotOfRule // where walks go on that a chain's end ends
	for at := (spotOfRule{name, 0}); ; at.index++ {
		rules := t.chains[at.chain]
		if at.index >= len(rules) {
			if len(callers) == 0 {
				v.mark = p.mark
				return v
			}
			at = callers[len(callers)-1]
			callers = callers[:len(callers)-1]
			continue
		}
		r := &rules[at.index]
		t.looks++
		if !t.matches(r, p, at) {
			continue
		}
		v.steps = append(v.steps, r.text)
		switch {
		case r.chain != "":
			if !r.gone {
				callers = append(callers, at)
			}
			at = spotOfRule{r.chain, -1}
		case r.target == "RETURN":
			at.index = len(rules)
		case r.target == "MARK":
			p.mark = p.mark&^r.mask ^ r.value
		case r.target == "SET":
			if t.change != nil {
				t.change(r.set, p, r.dirs, r.add)
			}
		case r.target != "":
			v.target, v.to, v.mark = r.target, r.to, p.mark
			return v
		}
	}
}

// matches tells whether all of a rule's matches are true for p. As in the kernel, the
// first that is not ends it.
func (t *tracer) matches(r *rule, p *packet, at spotOfRule) bool {
	return !slices.ContainsFunc(r.matches, func(m match) bool { return m.test(t, p, at) == m.not })
}

// draw tells whether a uniform random number of 31 bits is below a limit.
func (t *tracer) draw(below uint32) bool { return t.random()>>1 < below }

// turn tells whether it is the turn of a rule that takes one of every so many packets,
// the first one included.
func (t *tracer) turn(at spotOfRule, every uint32) bool {
	n := t.turns[at]
	t.turns[at] = (n + 1) % every
	return n == 0
}

// bytes returns the packet as programs see it: the IP header and the ports.
func (t *tracer) bytes(p *packet) []byte {
	if t.header != nil {
		return t.header
	}
	var b []byte
	if p.family == lb.IPv4 {
		b = make([]byte, 20, 48)
		b[0], b[9] = 0x45, byte(p.proto)
		copy(b[12:], p.src.Addr().AsSlice())
		copy(b[16:], p.dst.Addr().AsSlice())
	} else {
		b = make([]byte, 40, 48)
		b[0], b[6] = 0x60, byte(p.proto)
		copy(b[8:], p.src.Addr().AsSlice())
		copy(b[24:], p.dst.Addr().AsSlice())
	}
	b = binary.BigEndian.AppendUint16(b, p.src.Port())
	b = binary.BigEndian.AppendUint16(b, p.dst.Port())
	t.header = append(b, 0, 0, 0, 0)
	return t.header
}
