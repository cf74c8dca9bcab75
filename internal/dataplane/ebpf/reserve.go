// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// reservedLast is the time of last use of entries that take a port for netfilter. It is
// in the future, so that no sweep finds them idle.
const reservedLast = math.MaxInt64

// reservedPart is the part of the table that reservations may take: one of so many.
const reservedPart = 4

// Reserve keeps new connections apart from others that netfilter translates, given as they
// leave: from Client to Backend. A backend could not tell two connections from one port
// apart, and neither could who gets its answers: masked ones have a port that masquerading
// must not take, as another proxy takes any; plain ones have their client's own, so that
// another connection of that port to the same backend needs another one. What was reserved
// before and is not given any more is free again. Of very many, some are not reserved.
//
// A reservation is an entry of conns for the backend's answers, which replaces addresses by
// themselves: a packet goes on to netfilter, and the port is taken.
func (d *Dataplane) Reserve(masked, plain []dataplane.Flow) error {
	want := make(map[lbTuple]bool, len(masked)+2*len(plain))
	for _, fl := range masked {
		want[answerKey(fl, lbHookHOOK_INGRESS)] = true
	}
	for _, fl := range plain {
		want[answerKey(fl, lbHookHOOK_EGRESS)] = true
		if d.isNodeAddr(fl.Client.Addr()) { // it is answered as a masked one is
			want[answerKey(fl, lbHookHOOK_INGRESS)] = true
		}
	}
	most := int(d.maps.byName[lbMapConns].MaxEntries() / reservedPart)
	var full error
	for t := range want {
		if len(want) <= most {
			break
		}
		delete(want, t)
		full = fmt.Errorf("only %d connections of another proxy are kept apart: %w", most, dataplane.ErrFull)
	}
	var free []lbTuple
	err := d.eachConn(func(t *lbTuple, c *lbConn) {
		switch {
		case want[*t]:
			delete(want, *t) // or it is lbproxy's already, which cannot be helped
		case c.Last == reservedLast:
			free = append(free, *t)
		}
	})
	if err != nil {
		return fmt.Errorf("reserve ports: %w", err)
	}
	table := d.maps.byName[lbMapConns]
	for _, t := range free {
		if err := d.maps.remove(table, t); err != nil {
			return fmt.Errorf("free ports: %w", err)
		}
	}
	for t := range want {
		d.maps.wrote()
		c := lbConn{Addr: t.Daddr, Port: t.Dport, OtherPort: t.Sport, Last: reservedLast}
		if t.Hook == uint8(lbHookHOOK_EGRESS) {
			c = lbConn{Addr: t.Saddr, Port: t.Sport, OtherPort: t.Dport, Last: reservedLast}
		}
		err := table.Update(t, c, ebpf.UpdateNoExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("reserve ports: %w", err)
		}
	}
	return full
}

// answerKey is the key of what the backend of a flow answers, at one side of routing.
func answerKey(fl dataplane.Flow, hook lbHook) lbTuple {
	return lbTuple{
		Saddr: addrOf(fl.Backend.Addr()), Sport: swap16(fl.Backend.Port()),
		Daddr: addrOf(fl.Client.Addr()), Dport: swap16(fl.Client.Port()),
		Proto: uint8(fl.Proto), Hook: uint8(hook),
	}
}

// isNodeAddr tells whether a is an address of this node.
func (d *Dataplane) isNodeAddr(a netip.Addr) bool {
	var one uint32
	return d.maps.byName[lbMapNodeAddrs].Lookup(addrOf(a), &one) == nil
}
