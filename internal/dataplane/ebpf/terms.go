// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// sourceRangeOf returns p as a key of source_ranges.
func sourceRangeOf(id uint32, p netip.Prefix) lbSourceRange {
	k := prefixOf(p)
	return lbSourceRange{Len: 32 + k.Len, Service: id, Addr: k.Addr}
}

// widenRanges adds the source ranges that svc has not yet; narrowRanges removes those
// that it should not have any more. In between frontends are written: whoever may use
// them before and after the change may do so all the time. On an error svc may have some
// of the new ones, and knows it.
func (d *Dataplane) widenRanges(svc *service, want []netip.Prefix) error {
	all := slices.Clone(svc.ranges)
	defer func() {
		slices.SortFunc(all, netip.Prefix.Compare)
		svc.ranges = all
	}()
	for _, p := range want {
		if svc.hasRange(p) {
			continue
		}
		key := sourceRangeOf(svc.id, p)
		if err := d.maps.put(d.maps.ranges(), key, key.Len); err != nil {
			return fmt.Errorf("source range %s: %w", p, err)
		}
		all = append(all, p)
	}
	return nil
}

func (s *service) hasRange(p netip.Prefix) bool {
	_, found := slices.BinarySearchFunc(s.ranges, p, netip.Prefix.Compare)
	return found
}

// narrowRanges makes want the ranges of svc, all of which it has.
func (d *Dataplane) narrowRanges(svc *service, want []netip.Prefix) error {
	for i, p := range svc.ranges {
		if _, found := slices.BinarySearchFunc(want, p, netip.Prefix.Compare); found {
			continue
		}
		if err := d.maps.remove(d.maps.ranges(), sourceRangeOf(svc.id, p)); err != nil {
			svc.ranges = slices.Concat(want, svc.ranges[i:]) // some twice
			slices.SortFunc(svc.ranges, netip.Prefix.Compare)
			return fmt.Errorf("remove source range %s: %w", p, err)
		}
	}
	svc.ranges = want
	return nil
}

// setTerms stores for how long clients of svc keep their backend, for how long they avoid
// one, and who of its backends may be kept, or taken instead.
func (d *Dataplane) setTerms(svc *service, want *dataplane.Service) {
	affinity, suspect := uint32(want.Terms.Affinity/time.Second), suspectMillis(want)
	if s := &d.maps.services[svc.id]; s.Affinity != affinity || s.Suspect != suspect {
		d.maps.wrote()
		s.Affinity, s.Suspect = affinity, suspect
	}
	if affinity == 0 && suspect == 0 {
		return // nobody looks
	}
	for sc := range lb.Scope(scopes) {
		mine, others := want.Pool(sc).Backends, want.Pool(1-sc).Backends
		if len(svc.ids[1-sc]) == 0 {
			others = nil
		}
		for i, id := range svc.ids[sc] {
			bits := poolBit(sc, mine[i])
			for len(others) > 0 && others[0].Compare(mine[i]) < 0 {
				others = others[1:]
			}
			if len(others) > 0 && others[0].Addr == mine[i].Addr {
				bits |= poolBit(1-sc, others[0])
			}
			d.setPools(id, bits)
		}
	}
}

// poolBit is what backend b of pool sc adds to lbBackend.Pools.
func poolBit(sc lb.Scope, b lb.Backend) uint8 {
	if b.Weight == 0 {
		return 0
	}
	return 1 << sc
}

func (d *Dataplane) setPools(id uint32, bits uint8) {
	if be := &d.maps.backends[id]; be.Pools != bits {
		d.maps.wrote()
		be.Pools = bits
	}
}

// drain says of each backend of svc that is in no pool whether it keeps its flows.
func (d *Dataplane) drain(name lb.ServiceName, svc *service, terms lb.Terms) {
	svc.reset = terms.Reset
	for _, id := range svc.leaving {
		state := svc.gone()
		if len(terms.Draining) > 0 {
			if _, stays := slices.BinarySearchFunc(terms.Draining, d.maps.addrPort(id), netip.AddrPort.Compare); stays {
				state = lbBackendStateBACKEND_LEAVING
			}
		}
		d.setLeft(name, id, state)
	}
}

// gone is the state of svc's backends that serve nobody any more.
func (s *service) gone() lbBackendState {
	if s.reset {
		return lbBackendStateBACKEND_RESET
	}
	return lbBackendStateBACKEND_GONE
}

// setLeft sets the state of a backend that is in no pool. If it is gone, sockets that
// are connected to it are looked for, unless they stay.
func (d *Dataplane) setLeft(name lb.ServiceName, id uint32, state lbBackendState) {
	if d.maps.backends[id].State == uint8(state) {
		return
	}
	d.setState(id, state)
	if state == lbBackendStateBACKEND_RESET || state == lbBackendStateBACKEND_GONE && name.Proto == lb.UDP {
		d.left.flows = true
	}
}

// restoreRanges reads who has which source ranges. Those of nobody are removed.
func (d *Dataplane) restoreRanges(byID map[uint32]*service) error {
	var (
		key   lbSourceRange
		v     uint32
		stray []lbSourceRange
		it    = d.maps.ranges().Iterate()
	)
	for it.Next(&key, &v) {
		svc := byID[key.Service]
		if svc == nil {
			stray = append(stray, key)
			continue
		}
		svc.ranges = append(svc.ranges, prefixFrom(key.Addr, key.Len-32))
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read pinned map %s: %w", lbMapSourceRanges, err)
	}
	for _, svc := range byID {
		slices.SortFunc(svc.ranges, netip.Prefix.Compare)
	}
	for _, key := range stray {
		if err := d.maps.remove(d.maps.ranges(), key); err != nil {
			return fmt.Errorf("remove source range: %w", err)
		}
	}
	return nil
}

// prefixFrom is the inverse of prefixOf.
func prefixFrom(a lbAddr, bits uint32) netip.Prefix {
	addr := netipOf(a)
	if addr.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(addr, int(bits))
}
