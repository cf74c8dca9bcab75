// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// factorStart marks the factor of a member in slow start: PICK_STARTING in
// bpf/lib/pick.h.
const factorStart = 1 << 31

// table reads the table of a Service's pool and its backends, as they are at one
// moment: the agent may replace them at any time.
func (m *maps) table(id uint32, sc lb.Scope) (head, algo.Table, []lbSlot) {
	word := atomic.LoadUint64(&m.services[id].Pool[sc])
	if uint32(word) == 0 {
		return head{}, algo.Table{}, nil
	}
	slots := m.slots[uint32(word):]
	h, t := tableOf(slots, poolLen(word))
	return h, t, slots[headSlots:][:poolLen(word)]
}

// loadOf returns what a pick knows of backend id.
func (m *maps) loadOf(id uint32) algo.Load {
	us, at := m.latencyAt(id)
	now := uint32(monotonic() / time.Millisecond)
	return algo.Load{
		Active:  uint32(m.liveOf(id)),
		Latency: us,
		Idle:    min(now-at, now-atomic.LoadUint32(&m.stats[id].Given)),
	}
}

// costOf returns what one more connection costs at member i, which is backend id.
func (m *maps) costOf(t algo.Table, i int, id uint32) uint64 {
	factor := uint32(1)
	if t.Factors != nil {
		factor = t.Factors[i] &^ factorStart
	}
	if t.Cost == algo.Time {
		return algo.CostTime(m.loadOf(id), factor)
	}
	return algo.CostConns(m.loadOf(id), factor)
}

// reason says how a pool picks for a caller, in one sentence.
func (e *explainer) reason(from netip.Addr, to lb.FrontendKey, h head, t algo.Table, slots []lbSlot) string {
	n := len(slots)
	if n == 1 && t.Kind != algo.None {
		return "the only backend"
	}
	switch t.Kind {
	case algo.Rand:
		return fmt.Sprintf("one of %d backends, at random", n)
	case algo.Seq:
		return fmt.Sprintf("the next of %d backends in turn", n)
	case algo.Hash:
		return e.hashReason(from, to, h, t, slots)
	case algo.Two:
		return fmt.Sprintf("of two of %d backends, drawn at random, the one that costs less", n)
	case algo.Least, algo.Few:
		best, cost := e.cheapest(t, slots)
		among := fmt.Sprintf("of %d backends", n)
		if t.Kind == algo.Few && n > algo.FewMembers {
			among = fmt.Sprintf("of %d of %d backends from a random one", algo.FewMembers, n)
		}
		return fmt.Sprintf("%s the one that costs least: now %s, which costs %d", among, best, cost)
	case algo.None:
	}
	return "nobody can be picked"
}

// hashReason says which backend a caller's hash leads to, if the caller's address is
// all that it depends on.
func (e *explainer) hashReason(from netip.Addr, to lb.FrontendKey, h head, t algo.Table, slots []lbSlot) string {
	if h.hashKey() != lb.HashSource {
		return fmt.Sprintf("one of %d backends, by a hash of %s: ports decide too", len(slots), h.hashKey())
	}
	src := algo.HashPrefix(from, uint8(h.prefix4), uint8(h.prefix6))
	hash := algo.HashSource(e.maps.settings[0].HashSeed, src)
	i := algo.Pick(t, algo.Input{Hash: hash})
	if i < 0 {
		return "nobody can be picked"
	}
	e.step("the hash of %s is %08x, one of %d places", src, hash, max(len(t.Order), len(slots)))
	return fmt.Sprintf("%s always goes to %s", src, e.maps.addrPort(slots[i].Backend))
}

// cheapest returns the backend that costs least now.
func (e *explainer) cheapest(t algo.Table, slots []lbSlot) (at netip.AddrPort, cost uint64) {
	cost = 1<<64 - 1
	for i, s := range slots {
		if t.Factors != nil && (t.Factors[i] == 0 || t.Factors[i] >= factorStart) {
			continue
		}
		if c := e.maps.costOf(t, i, s.Backend); c < cost {
			at, cost = e.maps.addrPort(s.Backend), c
		}
	}
	return at, cost
}
