// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"math/bits"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// count is how many connections a backend has.
type count struct {
	live  uint64 // that have not ended
	fresh uint64 // that were not there at the reading before, ended or not
}

// counts is by Service and backend: those in its pools, and others that have
// connections.
type counts map[lb.ServiceName]map[netip.AddrPort]*count

// live returns the connections of each backend of list's pools, which are all pools of
// the node, as they were at most recent ago. Callers change nothing.
func (f *feedback) live(list func() []loaded) (counts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked != nil && time.Since(f.askedAt) < recent {
		return f.asked, nil
	}
	before := f.asked
	now := time.Now()
	pools := list()
	read := newCounter(pools)
	read.know(before)
	if err := read.all(f.flows); err != nil {
		return nil, err
	}
	f.asked, f.askedAt = read.counts, now
	return f.asked, nil
}

// liveOf returns the same for one Service. If it depends on loads, they are those that
// tick has read.
func (f *feedback) liveOf(name lb.ServiceName, list func() []loaded) (map[netip.AddrPort]*count, error) {
	f.mu.Lock()
	read, at := f.ticked[name], f.tickedAt
	f.mu.Unlock()
	if read != nil && time.Since(at) < recent {
		return read, nil
	}
	all, err := f.live(list)
	return all[name], err
}

// count reads the connections of list's pools. What is not in s is fresh, and is in
// it afterwards.
func (f *feedback) count(list []loaded, s *seen) (counts, error) {
	read := newCounter(list)
	read.seen = s
	f.mu.Lock()
	read.know(f.ticked)
	f.mu.Unlock()
	err := read.all(f.flows)
	return read.counts, err
}

// counter finds the Service of a flow.
type counter struct {
	counts    counts
	frontends map[lb.FrontendKey]map[netip.AddrPort]*count
	tables    map[[2]uint8]bool // families and protocols that there are
	seen      *seen             // nil: nothing is fresh
}

func newCounter(list []loaded) *counter {
	c := &counter{counts: counts{}, frontends: map[lb.FrontendKey]map[netip.AddrPort]*count{}, tables: map[[2]uint8]bool{}}
	for i := range list {
		l := &list[i]
		backends := c.counts[l.name]
		if backends == nil {
			backends = make(map[netip.AddrPort]*count, len(l.backends))
			c.counts[l.name] = backends
		}
		for _, be := range l.backends {
			if backends[be.Addr] == nil {
				backends[be.Addr] = &count{}
			}
		}
		for _, key := range l.frontends {
			c.frontends[key] = backends
		}
		c.tables[[2]uint8{uint8(l.name.Family), uint8(l.name.Proto)}] = true
	}
	return c
}

// know adds backends that had connections before: those of node ports are told from
// other people's only by their backends.
func (c *counter) know(before counts) {
	for name, backends := range before {
		now := c.counts[name]
		if now == nil {
			continue
		}
		for addr, old := range backends {
			if old.live > 0 && now[addr] == nil {
				now[addr] = &count{}
			}
		}
	}
}

// all counts the flows of each family and protocol.
func (c *counter) all(flows func(lb.Family, lb.Proto, func(flow)) error) error {
	for t := range c.tables {
		f := lb.Family(t[0])
		if err := flows(f, lb.Proto(t[1]), func(fl flow) { c.add(f, &fl) }); err != nil {
			return err
		}
	}
	return nil
}

// backendsOf returns the backends of the frontend that a flow is to, nil if it is to none.
// anywhere tells that it may be a node port, and other people's.
func (c *counter) backendsOf(f lb.Family, fl *flow) (backends map[netip.AddrPort]*count, anywhere bool) {
	if backends = c.frontends[lb.FrontendKey{Addr: fl.frontend, Proto: fl.proto}]; backends != nil {
		return backends, false
	}
	port := netip.AddrPortFrom(f.Unspecified(), fl.frontend.Port())
	return c.frontends[lb.FrontendKey{Addr: port, Proto: fl.proto}], true
}

// add counts a flow, if it was balanced.
func (c *counter) add(f lb.Family, fl *flow) {
	backends, anywhere := c.backendsOf(f, fl)
	if backends == nil {
		return
	}
	n := backends[fl.backend]
	if n == nil {
		if anywhere || fl.ended() {
			return
		}
		n = &count{}
		backends[fl.backend] = n
	}
	if !fl.ended() {
		n.live++
	}
	if c.seen != nil && c.seen.add(fl.id) {
		n.fresh++
	}
}

// seen remembers which entries were there at the last two readings, in a bit for each of
// at least seenRoom times as many hashes: of 16 new entries one is taken for an old one,
// at most.
type seen struct {
	old, now []uint64
	n        uint64 // entries of now
}

const (
	seenRoom  = 16
	seenLeast = 1 << 10 // words
)

// next makes place for the entries of another reading.
func (s *seen) next() *seen {
	words := max(seenLeast, 1<<bits.Len64(s.n*seenRoom/64))
	spare := s.old
	s.old, s.n = s.now, 0
	if len(spare) == words {
		clear(spare)
	} else {
		spare = make([]uint64, words)
	}
	s.now = spare
	return s
}

// add notes an entry and tells whether it was not there at the reading before. id is a
// hash.
func (s *seen) add(id uint32) bool {
	s.n++
	place := func(words []uint64) (int, uint64) {
		bit := uint64(id) & uint64(len(words)*64-1)
		return int(bit / 64), 1 << (bit % 64)
	}
	word, bit := place(s.now)
	s.now[word] |= bit
	if len(s.old) == 0 {
		return false
	}
	word, bit = place(s.old)
	return s.old[word]&bit == 0
}
