// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"sync/atomic"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// counts are sums over backends. They are computed modulo 2^64: what an agent finds at its
// start is taken off, what a backend that is freed has had is added.
type counts dataplane.Counts

func (c *counts) add(o counts) {
	c.Opened += o.Opened
	c.Closed += o.Closed
	c.Failed += o.Failed
}

func (c *counts) takeOff(o counts) {
	c.Opened -= o.Opened
	c.Closed -= o.Closed
	c.Failed -= o.Failed
}

// countsOf reads what a backend has had. Closed is read before opened: as many are open.
func (m *maps) countsOf(id uint32) counts {
	st := &m.stats[id]
	closed := atomic.LoadUint64(&st.Closed)
	return counts{Opened: atomic.LoadUint64(&st.Opened), Closed: closed, Failed: uint64(atomic.LoadUint32(&st.Failed))}
}

// begin makes the sums begin at 0, when the agent starts: what backends had before is
// taken off. Of those that were removed before nobody knows, so sums that went on would
// seem to have fallen.
func (d *Dataplane) begin() {
	for _, svc := range d.services {
		for id := range d.members(svc) {
			svc.past.takeOff(d.maps.countsOf(id))
		}
		for _, id := range svc.leaving {
			svc.past.takeOff(d.maps.countsOf(id))
		}
		d.past.add(svc.past)
	}
	for _, o := range d.orphans {
		for _, id := range o.service.leaving {
			d.past.takeOff(d.maps.countsOf(id))
		}
	}
}

// keep keeps what a backend has had that is about to be freed.
func (d *Dataplane) keep(svc *service, id uint32) {
	had := d.maps.countsOf(id)
	svc.past.add(had)
	d.past.add(had)
}
