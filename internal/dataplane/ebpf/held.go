// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Tracker is the connection tracking of this network namespace. What it knows, netfilter
// does not give to another connection.
type Tracker interface {
	Track(flows []dataplane.Flow) (made []dataplane.Flow, err error) // made: those that it did not know
	Untrack(flows []dataplane.Flow) error                            // what it does not know is no error
	// Reserve makes flows those, and no others, that are known for the sake of their
	// ports alone. It forgets them a minute later at the latest.
	Reserve(flows []dataplane.Flow) error
}

// held are connections that go on while another dataplane serves.
type held struct {
	open   []dataplane.Flow // of TCP, as routing and netfilter see them
	masked []dataplane.Flow // those of the packet path that are masqueraded, as they leave
}

// held returns them. Connections that begin or end meanwhile may or may not be among
// them.
func (d *Dataplane) held() (h held, err error) {
	socks, err := iterate[staleStaleSock](d.killer, staleProgLbConnected)
	if err != nil {
		return h, fmt.Errorf("look for connected sockets: %w", err)
	}
	for _, s := range socks {
		h.open = append(h.open, dataplane.Flow{
			Proto:   lb.TCP,
			Client:  addrPortOf(lbAddr(s.Local), s.LocalPort),
			Backend: addrPortOf(lbAddr(s.Peer), s.PeerPort),
		})
	}
	return h, d.eachConn(h.add)
}

// add adds what an entry of conns tells.
func (h *held) add(t *lbTuple, c *lbConn) {
	proto := lb.Proto(t.Proto)
	if proto == lb.UDP { // its flows move
		return
	}
	switch flags := lbConnFlags(c.Flags); {
	case flags&lbConnFlagsCONN_FORWARD != 0 && proto == lb.TCP && c.State&uint32(lbConnStateCONN_CLOSED) == 0:
		h.open = append(h.open, dataplane.Flow{
			Proto:   proto,
			Client:  addrPortOf(t.Saddr, c.OtherPort),
			Backend: addrPortOf(c.Addr, c.Port),
		})
	case flags&lbConnFlagsCONN_SNAT != 0 && c.Port != 0: // the port of one that has ended is taken, too
		h.masked = append(h.masked, dataplane.Flow{
			Proto:   proto,
			Client:  addrPortOf(c.Addr, c.Port),
			Backend: addrPortOf(t.Daddr, t.Dport),
		})
	}
}

// connBatch is how many entries of conns are read at once.
const connBatch = 4096

// eachConn calls each for every entry of conns; what it is given is valid until it
// returns. Entries are read in the order of the kernel's buckets, so that none is passed
// over because others go.
func (d *Dataplane) eachConn(each func(*lbTuple, *lbConn)) error {
	table := d.maps.byName[lbMapConns]
	keys, values := make([]lbTuple, connBatch), make([]lbConn, connBatch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := table.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			each(&keys[i], &values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read map %s: %w", lbMapConns, err)
		}
	}
}
