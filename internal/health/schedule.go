// SPDX-License-Identifier: Apache-2.0

package health

import (
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
	dated              // the earliest of their wishes
	busy     bool      // a probe is under way; then it is not in the queue
	began    time.Time // of the last probe
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
	queue queue[*aimed]
}

func newSchedule() schedule { return schedule{aims: map[aim]*aimed{}} }

// join makes b's wish one of those of a. It was one of no aim's.
func (s *schedule) join(b *backend, a aim) {
	t := s.aims[a]
	if t == nil {
		t = &aimed{aim: a, dated: undated}
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
		s.queue.remove(t)
		delete(s.aims, t.aim)
		return
	}
	t.due = t.backends[0].wish.at
	for _, b := range t.backends[1:] {
		if b.wish.at.Before(t.due) {
			t.due = b.wish.at
		}
	}
	s.queue.put(t)
}

// pop takes the next aim out of the queue if it is due. It comes back by plan.
func (s *schedule) pop(now time.Time) *aimed {
	if len(s.queue) == 0 || s.queue[0].due.After(now) {
		return nil
	}
	t := s.queue[0]
	s.queue.remove(t)
	return t
}

// next returns when the next aim is due, if there is one.
func (s *schedule) next() (at time.Time, ok bool) {
	if len(s.queue) == 0 {
		return at, false
	}
	return s.queue[0].due, true
}
