// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"slices"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// wideFrom is from how many endpoints on what was gathered for a Service is kept: it
// costs 48 bytes for each endpoint and port, and few Services are that wide.
const wideFrom = 500

// wide is what was gathered for a Service the last time, so that a change of one
// slice costs little more than the slice.
type wide struct {
	from    []*slice // what it was gathered from
	weights uint64   // Store.weighings then
	lists   map[lb.ServiceName][]candidate

	// Of the pass that is under way.
	removed, added []*slice         // how the slices differ
	weighed        bool             // weights have changed since, though of none of from that is still there
	gathered       []lb.ServiceName // those that lists has, or should not have
}

// isWide tells whether what is gathered from the given slices is worth keeping.
func isWide(from []*slice, limit int) bool {
	n := 0
	for _, s := range from {
		n += len(s.endpoints)
	}
	return n >= limit
}

// begin prepares w, which may be nil, for gathering from the given slices.
// Whoever changes a weight drops the w of those who have it.
func (w *wide) begin(from []*slice, weights uint64) *wide {
	if w == nil {
		w = &wide{weights: weights, lists: map[lb.ServiceName][]candidate{}}
	}
	w.weighed, w.weights = w.weights != weights, weights
	w.removed, w.added = differ(w.from, from)
	return w
}

// end notes what has been gathered from. Units that were not gathered for in this
// pass, because another Service has their frontends, say, are forgotten: their lists
// are of slices that may be gone.
func (w *wide) end(from []*slice) {
	w.from = slices.Clone(from)
	for name := range w.lists {
		if !slices.Contains(w.gathered, name) {
			delete(w.lists, name)
		}
	}
	w.removed, w.added, w.gathered = nil, nil, nil
}

// differ returns which slices left and which came; both lists are sorted by name.
func differ(was, is []*slice) (removed, added []*slice) {
	for len(was) > 0 || len(is) > 0 {
		switch {
		case len(is) == 0 || len(was) > 0 && compareSlices(was[0], is[0]) < 0:
			removed, was = append(removed, was[0]), was[1:]
		case len(was) == 0 || compareSlices(was[0], is[0]) > 0:
			added, is = append(added, is[0]), is[1:]
		default:
			if was[0] != is[0] {
				removed, added = append(removed, was[0]), append(added, is[0])
			}
			was, is = was[1:], is[1:]
		}
	}
	return removed, added
}

// gather is gather of the given slices. It uses the memory of scratch, and returns
// memory for the next time. Addresses that are in several slices are gathered anew
// each time: which of them wins is not known from the list.
func (w *wide) gather(name lb.ServiceName, from []*slice, ws weights, scratch []candidate) (list, free []candidate) {
	w.gathered = append(w.gathered, name)
	before, kept := w.lists[name]
	if kept {
		gone, come := gather(name, w.removed, ws, nil), gather(name, w.added, ws, nil)
		if len(come) == endpointsOf(name, w.added) {
			if list, kept = patch(before, gone, come, scratch, !w.weighed); kept {
				w.lists[name] = list
				return list, before
			}
		}
		scratch = before
	}
	list = gather(name, from, ws, scratch)
	if len(list) == endpointsOf(name, from) {
		w.lists[name] = list
		return list, nil
	}
	delete(w.lists, name)
	return list, list
}

// endpointsOf returns how many endpoints the slices have for name, whatever their
// addresses.
func endpointsOf(name lb.ServiceName, from []*slice) int {
	n := 0
	for _, s := range from {
		for _, p := range s.ports {
			if s.family == name.Family && p.name == name.Port && p.proto == name.Proto {
				n += len(s.endpoints)
			}
		}
	}
	return n
}

// patch returns list without gone and with come, in the memory of into. All are
// sorted; list has the addresses of gone, and unless exact is false what else is in it.
// It fails if it has an address of come already.
func patch(list, gone, come, into []candidate, exact bool) ([]candidate, bool) {
	out := into[:0]
	if n := len(list) - len(gone) + len(come); cap(out) < n {
		out = make([]candidate, 0, n)
	}
	at := 0 // up to where list was copied
	for len(gone) > 0 || len(come) > 0 {
		if exact && len(gone) > 0 && len(come) > 0 && gone[0] == come[0] {
			gone, come = gone[1:], come[1:] // as most are
			continue
		}
		if len(come) == 0 || len(gone) > 0 && gone[0].addr.Compare(come[0].addr) <= 0 {
			i, found := seek(list, at, &gone[0])
			if !found {
				return nil, false
			}
			out = append(out, list[at:i]...)
			at, gone = i+1, gone[1:]
			continue
		}
		i, found := seek(list, at, &come[0])
		if found {
			return nil, false
		}
		out = append(append(out, list[at:i]...), come[0])
		at, come = i, come[1:]
	}
	return append(out, list[at:]...), true
}

// seek returns where in list, from at on, the address of c is or belongs. It takes
// steps that double, as it is called for one address after the other.
func seek(list []candidate, at int, c *candidate) (int, bool) {
	end := at
	for step := 1; end < len(list) && list[end].addr.Compare(c.addr) < 0; step *= 2 {
		at, end = end+1, end+step
	}
	i, found := slices.BinarySearchFunc(list[at:min(end+1, len(list))], c, func(l candidate, c *candidate) int { return l.addr.Compare(c.addr) })
	return at + i, found
}
