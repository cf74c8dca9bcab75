// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// A reservation is an entry of connection tracking for a port that the eBPF dataplane
// masquerades with: netfilter gives it to no other connection. It is known by its mark,
// all bits of it: no packet that netfilter sees has its addresses, so nobody else's rules
// read or write that. It goes by itself when no agent is left that renews it.
const (
	reservedMark = 0x6c620001
	reservedFor  = 60 // s
)

// reserved tells whether an entry is a reservation.
func (e *entry) reserved() bool { return e.mark == reservedMark && !e.natted && !e.masked }

// Reserve makes flows those that are reserved, for a minute: it renews what is there, and
// removes what is none of them. Other entries are left alone, those of flows, too.
// It goes on after an error, but for a table that is full; and it makes no new ones that
// would fill more than half of the table, because nothing evicts them.
func (t Tracker) Reserve(flows []dataplane.Flow) error {
	want := map[dataplane.Flow]bool{}
	for _, fl := range flows {
		want[fl] = true
	}
	have, _, err := reservations(func(fl dataplane.Flow) bool { return want[fl] })
	if err != nil {
		return err
	}
	room := len(flows)
	if len(have) < len(want) {
		room = reserveRoom(t.settings())
	}
	flows, full := fitting(flows, have, room)
	return errors.Join(full, eachFlow(flows, func(c *conntrack, fl dataplane.Flow) error {
		if have[fl] {
			err := c.request(nl.IPCTNL_MSG_CT_NEW, 0, lb.FamilyOf(fl.Client.Addr()), renewMessage(fl))
			if !errors.Is(err, unix.ENOENT) { // else its time was over
				return err
			}
		}
		_, err := c.create(reserveMessage(fl), fl)
		return err
	}))
}

// reserveRoom returns how many entries the table takes until it is half full.
func reserveRoom(s sysctls) int {
	count, limit := tableFill(s)
	return int(limit/2 - min(count, limit/2))
}

// reservations returns the flows that are reserved, but for those that keep refuses:
// these it removes, and counts.
func reservations(keep func(dataplane.Flow) bool) (kept map[dataplane.Flow]bool, removed int, err error) {
	if _, err := os.Stat(systemSettings(nil).file("net/netfilter/nf_conntrack_count")); err != nil {
		return nil, 0, nil // nothing is loaded by a look
	}
	reader, err := openConntrack()
	if err != nil {
		return nil, 0, err
	}
	defer reader.close()
	writer, err := openConntrack()
	if err != nil {
		return nil, 0, err
	}
	defer writer.close()
	kept = map[dataplane.Flow]bool{}
	var failed error
	for _, f := range families {
		errDump := reader.dump(query{family: f, mark: reservedMark}, func(e *entry) error {
			fl := dataplane.Flow{Proto: e.proto, Client: e.client, Backend: e.frontend}
			switch {
			case !e.reserved():
				return nil
			case keep(fl):
				kept[fl] = true
				return nil
			}
			gone, err := writer.delete(f, e)
			if err != nil && failed == nil {
				failed = fmt.Errorf("%s %s to %s: %w", fl.Proto, fl.Client, fl.Backend, err)
			}
			if gone {
				removed++
			}
			return nil
		})
		err = errors.Join(err, errDump)
	}
	return kept, removed, errors.Join(err, failed)
}

// endReservations removes all reservations.
func endReservations() (removed int, err error) {
	_, removed, err = reservations(func(dataplane.Flow) bool { return false })
	return removed, err
}
