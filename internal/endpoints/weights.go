// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"hash/maphash"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// ref names the Pod or the Node of an endpoint: a hash, because a cluster has a
// hundred thousand endpoints. 0 is none. Two names of 100,000 Pods with weights
// and 100,000 without have the same hash with a probability of 1e-9, and who
// chooses names does not know the seed.
type ref uint64

var refSeed = maphash.MakeSeed()

func makeRef(kind string, obj lb.Object) ref {
	var h maphash.Hash // maphash.Comparable takes several times as long
	h.SetSeed(refSeed)
	for _, part := range []string{kind, obj.Namespace, obj.Name} {
		_, _ = h.WriteString(part) // it never fails
		_ = h.WriteByte(0)         // which is in no name
	}
	return ref(h.Sum64() | 1)
}

// weight is what one object says about the weight of endpoints.
type weight struct {
	value uint16
	known bool  // value is what the object says, or has said last
	err   error // what it says now is no weight
}

// readWeight returns the weight in m, or nil if there is none.
func readWeight(m map[string]string) *weight {
	text, ok := m[keyWeight]
	if !ok {
		return nil
	}
	v, err := parseWeight(text)
	return &weight{value: v, known: err == nil, err: err}
}

// keep takes over what before said if w says nothing valid.
func (w *weight) keep(before *weight) {
	if w.err != nil && before != nil {
		w.value, w.known = before.value, before.known
	}
}

func (w *weight) equal(o *weight) bool {
	if w == nil || o == nil {
		return w == o
	}
	return w.value == o.value && w.known == o.known && fmt.Sprint(w.err) == fmt.Sprint(o.err)
}

// weighed is a Pod or a Node, as far as weights are concerned.
type weighed struct {
	kind   string
	obj    lb.Object
	uid    types.UID // empty in manifests
	weight *weight   // nil: it has none
}

// field returns where the weight is.
func (w *weighed) field() string {
	if w.kind == KindPod {
		return "metadata.labels[" + keyWeight + "]"
	}
	return annotationField(keyWeight)
}

// parsePod reads the weight of a Pod.
func parsePod(in *metav1.ObjectMeta) *weighed {
	return &weighed{KindPod, lb.Object{Namespace: in.Namespace, Name: in.Name}, in.UID, readWeight(in.Labels)}
}

// weights are the Pods and Nodes that have a weight.
type weights map[ref]*weighed

// of returns the weight of an endpoint of sl: the Pod's, else the slice's, else
// the Node's.
func (ws weights) of(sl *slice, ep *endpoint) uint16 {
	if len(ws) == 0 && sl.weight == nil { // as in most clusters
		return lb.DefaultWeight
	}
	if w := ws[ep.pod]; w != nil && w.weight.known {
		return w.weight.value
	}
	if sl.weight != nil && sl.weight.known {
		return sl.weight.value
	}
	if w := ws[ep.node]; w != nil && w.weight.known {
		return w.weight.value
	}
	return lb.DefaultWeight
}

// problems adds the Pods of a Service's slices whose weight is invalid. Those of
// Nodes concern too many Services to tell each.
func (ws weights) problems(from []*slice, p *problems) {
	if len(ws) == 0 {
		return
	}
	told := map[ref]bool{}
	for _, sl := range from {
		for i := range sl.endpoints {
			r := sl.endpoints[i].pod
			if w := ws[r]; w != nil && w.weight.err != nil && !told[r] {
				told[r] = true
				p.add("Pod "+w.obj.Name+": "+w.field(), ReasonInvalidWeight, w.weight.err)
			}
		}
	}
}

// The methods of Store in this file are called with s.mu held.

// putWeighed takes over the weight of a Pod or a Node, and touches the Services
// that have an endpoint there, and no others.
func (s *Store) putWeighed(w *weighed) {
	r := makeRef(w.kind, w.obj)
	old := s.weights[r]
	var before *weight
	if old != nil {
		before = old.weight
	}
	var ps []Problem
	if w.weight != nil {
		if old != nil && old.uid == w.uid { // another object of that name starts afresh
			w.weight.keep(before)
		}
		if w.weight.err != nil {
			ps = []Problem{{Kind: w.kind, Object: w.obj, Field: w.field(), Reason: ReasonInvalidWeight, Err: w.weight.err}}
		}
	}
	s.setProblems(owner{w.kind, w.obj}, ps)
	if w.weight == nil {
		delete(s.weights, r)
	} else {
		s.weights[r] = w
	}
	if w.weight.equal(before) {
		return
	}
	s.weighings++
	s.buildIndex()
	for _, e := range s.index[r] {
		e.wide = nil
		s.touch(e)
	}
}

func (s *Store) putPod(w *weighed) { s.putWeighed(w) }

func (s *Store) dropPod(obj lb.Object) { s.putWeighed(&weighed{kind: KindPod, obj: obj}) }

// replacePods makes list the Pods that have a weight.
func (s *Store) replacePods(list []*weighed) {
	s.setProblems(ownerPods, nil)
	s.replaceWeighed(KindPod, list)
}

func (s *Store) replaceWeighed(kind string, list []*weighed) {
	seen := make(map[lb.Object]bool, len(list))
	for _, w := range list {
		seen[w.obj] = true
		s.putWeighed(w)
	}
	for _, w := range s.weights {
		if w.kind == kind && !seen[w.obj] {
			s.putWeighed(&weighed{kind: kind, obj: w.obj})
		}
	}
}

// buildIndex makes the index when the first weight comes; most clusters have none
// and need none.
func (s *Store) buildIndex() {
	if s.index != nil {
		return
	}
	s.index = map[ref][]*entry{}
	for _, e := range s.entries {
		for _, sl := range e.slices {
			s.reindex(e, nil, sl)
		}
	}
}

// reindex notes that e has the slice next in place of old; either may be nil. The
// index has e once for each slice that refers to a Pod or Node.
func (s *Store) reindex(e *entry, old, next *slice) {
	if s.index == nil {
		return
	}
	was, is := old.refs(), next.refs()
	for len(was) > 0 || len(is) > 0 {
		switch {
		case len(is) == 0 || len(was) > 0 && was[0] < is[0]:
			s.unindex(was[0], e)
			was = was[1:]
		case len(was) == 0 || is[0] < was[0]:
			s.index[is[0]] = append(s.index[is[0]], e)
			is = is[1:]
		default:
			was, is = was[1:], is[1:]
		}
	}
}

func (s *Store) unindex(r ref, e *entry) {
	list := s.index[r]
	if i := slices.Index(list, e); i >= 0 {
		last := len(list) - 1
		list[i], list[last] = list[last], nil
		list = list[:last]
	}
	if len(list) == 0 {
		delete(s.index, r)
		return
	}
	s.index[r] = list
}

// refs returns the Pods and Nodes of s, sorted, each once.
func (s *slice) refs() []ref {
	if s == nil {
		return nil
	}
	rs := make([]ref, 0, 2*len(s.endpoints))
	for i := range s.endpoints {
		for _, r := range [...]ref{s.endpoints[i].pod, s.endpoints[i].node} {
			if r != 0 {
				rs = append(rs, r)
			}
		}
	}
	slices.Sort(rs)
	return slices.Compact(rs)
}
