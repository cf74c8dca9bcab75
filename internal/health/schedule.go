// SPDX-License-Identifier: Apache-2.0

package health

import (
	"container/heap"
	"net/netip"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// aim is what makes two probes the same.
type aim struct {
	addr  netip.AddrPort // with the probe's port
	probe lb.Probe
}

// aimAt returns how a backend is probed: as h says or, if it says nothing, by connecting.
func aimAt(backend netip.AddrPort, h *lb.Health) aim {
	p := h.Probe
	if !active(h) {
		p = lb.Probe{Kind: lb.ProbeTCP, Timeout: p.Timeout}
	}
	if p.Port != 0 {
		backend = netip.AddrPortFrom(backend.Addr(), p.Port)
	}
	return aim{backend, p}
}

// aimed is an aim of one or more backends, of different Services.
type aimed struct {
	aim
	backends []*backend
	due      time.Time // the earliest of their wishes
	busy     bool      // a probe is under way; then it is not in the queue
	began    time.Time // of the last probe
	place    int       // in the queue; -1: it is not there
	done     func(Result)
}

// each returns the backends of t; some may leave it meanwhile.
func (t *aimed) each() []*backend {
	if len(t.backends) == 1 {
		return t.backends[:1:1]
	}
	return slices.Clone(t.backends)
}

// schedule has the aims in the order in which they are due. It reads no clock.
type schedule struct {
	aims  map[aim]*aimed
	queue queue
	epoch time.Time // from which the queue counts: what was planned first
}

func newSchedule() schedule { return schedule{aims: map[aim]*aimed{}} }

// join makes b's wish one of those of a. It was one of no aim's.
func (s *schedule) join(b *backend, a aim) {
	t := s.aims[a]
	if t == nil {
		t = &aimed{aim: a, place: -1}
		s.aims[a] = t
	}
	t.backends = append(t.backends, b)
	b.aimed = t
	s.plan(t)
}

// leave takes b's wish away. An aim of nobody is forgotten, but not before its probe has
// ended: there are never two of one aim.
func (s *schedule) leave(b *backend) {
	t := b.aimed
	if t == nil {
		return
	}
	b.aimed = nil
	i := slices.Index(t.backends, b)
	t.backends = slices.Delete(t.backends, i, i+1)
	s.plan(t)
}

// plan puts t where it belongs after a wish has changed or a probe has ended.
func (s *schedule) plan(t *aimed) {
	if t.busy {
		return
	}
	if len(t.backends) == 0 {
		if t.place >= 0 {
			heap.Remove(&s.queue, t.place)
		}
		delete(s.aims, t.aim)
		return
	}
	t.due = t.backends[0].wish.at
	for _, b := range t.backends[1:] {
		if b.wish.at.Before(t.due) {
			t.due = b.wish.at
		}
	}
	if len(s.queue) == 0 {
		s.epoch = t.due
	}
	at := t.due.Sub(s.epoch)
	if t.place < 0 {
		heap.Push(&s.queue, entry{at, t})
	} else {
		s.queue[t.place].at = at
		heap.Fix(&s.queue, t.place)
	}
}

// pop takes the next aim out of the queue if it is due. It comes back by plan.
func (s *schedule) pop(now time.Time) *aimed {
	if len(s.queue) == 0 || s.queue[0].due.After(now) {
		return nil
	}
	return heap.Pop(&s.queue).(entry).aimed
}

// next returns when the next aim is due, if there is one.
func (s *schedule) next() (at time.Time, ok bool) {
	if len(s.queue) == 0 {
		return at, false
	}
	return s.queue[0].due, true
}

// entry is an aim in a queue. To compare two of them, the aims need not be looked at.
type entry struct {
	at time.Duration // when it is due
	*aimed
}

// queue is a heap by at.
type queue []entry

// Len is for heap.
func (q queue) Len() int { return len(q) }

// Less is for heap.
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at }

// Swap is for heap.
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push is for heap.
func (q *queue) Push(x any) {
	e := x.(entry)
	e.place = len(*q)
	*q = append(*q, e)
}

// Pop is for heap.
func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = entry{}
	*q = (*q)[:last]
	e.place = -1
	return e
}
