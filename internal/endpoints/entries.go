// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"slices"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The functions of this file change the Store's objects. s.mu is held.

func (s *Store) entry(obj lb.Object) *entry {
	e := s.entries[obj]
	if e == nil {
		e = &entry{obj: obj}
		s.entries[obj] = e
	}
	return e
}

// touch makes the next Take look at e.
func (s *Store) touch(e *entry) {
	if !e.dirty {
		e.dirty = true
		s.dirty = append(s.dirty, e)
	}
	if len(s.waiting) == 0 {
		s.tell()
	}
}

// touchSlice is touch for a slice of e that changed.
func (s *Store) touchSlice(e *entry) {
	s.tallies.Slices.Pending++
	s.touch(e)
}

func (s *Store) putService(svc *service) {
	s.tallies.Services.Total++
	e := s.entry(svc.obj)
	svc.settle(e.svc, s.options())
	if e.svc != nil && e.svc.equal(svc) {
		return
	}
	s.setService(e, svc)
}

func (s *Store) dropService(obj lb.Object) {
	if e := s.entries[obj]; e != nil && e.svc != nil {
		s.tallies.Services.Total++
		s.setService(e, nil)
	}
}

// setService replaces e's Service and its claims.
func (s *Store) setService(e *entry, svc *service) {
	s.tallies.Services.Pending++
	s.eachKey(e, s.claims.remove)
	e.svc = svc
	s.eachKey(e, s.claims.add)
	s.touch(e)
}

// eachKey calls f for every frontend that e's Service asks for, and touches what
// it returns.
func (s *Store) eachKey(e *entry, f func(lb.FrontendKey, *entry) []*entry) {
	if e.svc == nil {
		return
	}
	for _, u := range e.svc.units {
		for _, fe := range u.frontends {
			for _, other := range f(fe.FrontendKey, e) {
				s.touch(other)
			}
		}
	}
}

func (s *Store) putSlice(sl *slice) {
	if old := s.slices[sl.obj]; old != nil && old.obj.Name != sl.service {
		s.dropSlice(sl.obj)
	}
	s.setProblems(owner{KindEndpointSlice, sl.obj}, orphaned(sl))
	if sl.service == "" {
		return
	}
	s.tallies.Slices.Total++
	e := s.entry(lb.Object{Namespace: sl.obj.Namespace, Name: sl.service})
	sl.obj.Namespace, sl.service = e.obj.Namespace, e.obj.Name // one copy of the strings
	i, found := slices.BinarySearchFunc(e.slices, sl, compareSlices)
	if !found {
		s.reindex(e, nil, sl)
		e.slices = slices.Insert(e.slices, i, sl)
		s.slices[sl.obj] = e
		s.trigger(e, sl.triggered)
		s.touchSlice(e)
		return
	}
	old := e.slices[i]
	if sl.weight != nil && sl.uid == old.uid {
		sl.weight.keep(old.weight)
	}
	if old.equal(sl) {
		old.triggered = sl.triggered // of nothing that matters: a later change is another one's
		return
	}
	s.reindex(e, old, sl)
	e.slices[i] = sl
	if sl.triggered != old.triggered {
		s.trigger(e, sl.triggered)
	}
	s.touchSlice(e)
}

// trigger notes when a change of e came about, unless that was before this process.
func (s *Store) trigger(e *entry, at int64) {
	if at >= s.started && (e.triggered == 0 || at < e.triggered) {
		e.triggered = at
	}
}

// orphaned returns the problems of a slice that belongs to no Service; those of
// others are the Service's.
func orphaned(sl *slice) []Problem {
	if sl.service == "" {
		return sl.problems
	}
	return nil
}

func (s *Store) dropSlice(obj lb.Object) {
	s.setProblems(owner{KindEndpointSlice, obj}, nil)
	e := s.slices[obj]
	if e == nil {
		return
	}
	delete(s.slices, obj)
	e.slices = slices.DeleteFunc(e.slices, func(sl *slice) bool {
		if sl.obj != obj {
			return false
		}
		s.reindex(e, sl, nil)
		return true
	})
	s.tallies.Slices.Total++
	s.touchSlice(e)
}

// replaceServices makes list the Services that exist.
func (s *Store) replaceServices(list []*service) {
	seen := make(map[lb.Object]bool, len(list))
	for _, svc := range list {
		seen[svc.obj] = true
		s.putService(svc)
	}
	for obj := range s.entries {
		if !seen[obj] {
			s.dropService(obj)
		}
	}
}

// replaceSlices makes list the EndpointSlices that exist.
func (s *Store) replaceSlices(list []*slice) {
	seen := make(map[lb.Object]bool, len(list))
	for _, sl := range list {
		seen[sl.obj] = true
		s.putSlice(sl)
	}
	for obj := range s.slices {
		if !seen[obj] {
			s.dropSlice(obj)
		}
	}
	for o := range s.problems { // of slices that belong to nobody
		if o.kind == KindEndpointSlice && !seen[o.object] {
			s.setProblems(o, nil)
		}
	}
}
