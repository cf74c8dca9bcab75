// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// reservedLast is the time of last use of entries that take a port for netfilter. It is
// in the future, so that no sweep finds them idle.
const reservedLast = math.MaxInt64

// Reserve keeps masquerading away from the ports that netfilter has given to other
// connections, as they leave: from Client to Backend. Another proxy gives any port, also
// those that lbproxy masquerades with, and who answers to one of them must not be led to
// a client of lbproxy's. What was reserved before and is not among flows is free again.
//
// A reserved port is an entry of conns for what the backend sends there, which replaces
// addresses by themselves: the packet goes on to netfilter, and the port is taken.
func (d *Dataplane) Reserve(flows []dataplane.Flow) error {
	want := make(map[lbTuple]bool, len(flows))
	for _, fl := range flows {
		want[lbTuple{
			Saddr: addrOf(fl.Backend.Addr()), Sport: swap16(fl.Backend.Port()),
			Daddr: addrOf(fl.Client.Addr()), Dport: swap16(fl.Client.Port()),
			Proto: uint8(fl.Proto), Hook: uint8(lbHookHOOK_INGRESS),
		}] = true
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
		err := table.Update(t, c, ebpf.UpdateNoExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("reserve ports: %w", err)
		}
	}
	return nil
}
