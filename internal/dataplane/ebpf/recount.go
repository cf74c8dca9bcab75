// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// recountInterval is how often connections are counted anew.
const recountInterval = 30 * time.Second

// recount is what recounts found.
type recount struct {
	off         map[uint32]int64 // backends whose count was off the last time, and by how much
	corrections uint64           // connections by which counts were off twice in a row
}

// counters are what is counted of a backend at one moment.
type counters struct{ opened, closed uint64 }

// Recount counts what is open - in the storage of every socket, in the connection
// table, among UDP flows - and compares that with opened - closed of each backend.
// Connections that come and go meanwhile are allowed for. A backend that is off by
// the same side twice in a row has been miscounted; that is reported in
// Stats.Corrections and never repaired: a difference is a bug, and a repair would
// hide it. Where sockets are found by files only what is counted too low is seen: the
// kernel itself may have more. It also ends the connections of sockets that are not connected any more
// without having told anybody.
func (d *Dataplane) Recount() error {
	ids := d.backendsInUse()
	for _, id := range ids {
		d.maps.recounts[id] = 0
	}
	d.maps.recounts[0] = nextRound(d.maps.recounts[0])
	before := d.counts(ids)
	if err := d.recountSockets(); err != nil {
		return fmt.Errorf("recount sockets: %w", err)
	}
	if err := d.sweep(uint64(monotonic()), true); err != nil {
		return err
	}
	after := d.counts(ids)
	d.mu.Lock()
	defer d.mu.Unlock()
	off := map[uint32]int64{}
	for i, id := range ids {
		found := int64(atomic.LoadUint64(&d.maps.recounts[id]))
		by := deviation(found, int64(before[i].opened-after[i].closed), int64(after[i].opened-before[i].closed))
		if by == 0 || by < 0 && socketsByFile() {
			continue
		}
		off[id] = by
		if last := d.recounted.off[id]; last*by > 0 {
			d.recounted.corrections += uint64(max(by, -by))
			d.opts.Log.Warn("connections were miscounted", "backend", d.maps.addrPort(id), "found", found, "off", by)
		}
	}
	d.recounted.off = off
	return nil
}

// nextRound returns the number of the recount after this one. Sockets remember its low byte,
// so that one which several processes have counts once; one that was never counted has 0.
func nextRound(round uint64) uint64 {
	round++
	if round&0xff == 0 {
		round++
	}
	return round
}

// deviation returns by how much n lies outside [low, high].
func deviation(n, low, high int64) int64 {
	switch {
	case n < low:
		return n - low
	case n > high:
		return n - high
	}
	return 0
}

func (d *Dataplane) backendsInUse() (ids []uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := uint32(1); id < d.backendIDs.next; id++ {
		if d.maps.backends[id].State != uint8(lbBackendStateBACKEND_FREE) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (d *Dataplane) counts(ids []uint32) []counters {
	cs := make([]counters, len(ids))
	for i, id := range ids {
		cs[i].closed = atomic.LoadUint64(&d.maps.stats[id].Closed)
		cs[i].opened = atomic.LoadUint64(&d.maps.stats[id].Opened)
	}
	return cs
}

// recountSockets runs lb_recount for every socket with an assignment.
func (d *Dataplane) recountSockets() error {
	r, err := d.progs.overSockets(lbProgLbRecount, d.maps)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}
