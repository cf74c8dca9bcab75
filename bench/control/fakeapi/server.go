// SPDX-License-Identifier: Apache-2.0

// Package fakeapi is an API server for benchmarks: it holds Services,
// EndpointSlices, Nodes, Pods and ServiceCIDRs in memory and serves list and
// watch, the streaming lists of client-go included, in protobuf, which is what
// kube-proxy and lbproxy ask a real one for. There is no TLS and no history: a
// watch from an older resource version is told that it has expired.
package fakeapi

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is what the server holds: a pointer to a type of k8s.io/api.
type Object interface {
	metav1.Object
	runtime.Object
	marshaler
}

// Server is the API server. Its methods may be called from any goroutine.
type Server struct {
	collections map[string]*collection // by path
	revision    atomic.Uint64          // the last resource version
	events      atomic.Int64           // that were posted
}

// New returns a server that has nothing.
func New() *Server {
	s := &Server{collections: map[string]*collection{}}
	for _, c := range []*collection{
		{path: "/api/v1/services", kind: "Service", version: "v1", blank: func() Object { return &corev1.Service{} }},
		{path: "/api/v1/nodes", kind: "Node", version: "v1", blank: func() Object { return &corev1.Node{} }},
		{path: "/api/v1/pods", kind: "Pod", version: "v1", blank: func() Object { return &corev1.Pod{} }},
		{path: "/apis/discovery.k8s.io/v1/endpointslices", kind: "EndpointSlice", version: "discovery.k8s.io/v1",
			blank: func() Object { return &discovery.EndpointSlice{} }},
		{path: "/apis/networking.k8s.io/v1/servicecidrs", kind: "ServiceCIDR", version: "networking.k8s.io/v1",
			blank: func() Object { return &networking.ServiceCIDR{} }},
	} {
		c.items, c.watches = map[string]*item{}, map[*watch]struct{}{}
		s.collections[c.path] = c
	}
	return s
}

// collection is all objects of one kind.
type collection struct {
	path, kind, version string
	blank               func() Object

	mu       sync.Mutex
	revision uint64 // of the last change here
	items    map[string]*item
	order    []*item // in which they came
	watches  map[*watch]struct{}
	listed   time.Time // when everything was last written to a client
}

// item is one object as it is on the wire.
type item struct {
	labels labels.Set
	fields fields.Set
	forms  [2][]byte // by form; made when first asked for
	meta   metav1.ObjectMeta
}

// collectionOf returns where obj belongs.
func (s *Server) collectionOf(obj Object) (*collection, error) {
	for _, c := range s.collections {
		if fmt.Sprintf("%T", c.blank()) == fmt.Sprintf("%T", obj) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("fake API server: no collection of %T", obj)
}

// newItem encodes obj.
func (c *collection) newItem(obj Object) (*item, error) {
	raw, err := encode(c.version, c.kind, obj)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", c.kind, obj.GetName(), err)
	}
	it := &item{labels: obj.GetLabels(), fields: fieldsOf(obj), meta: metav1.ObjectMeta{
		Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
		ResourceVersion: obj.GetResourceVersion(), Labels: obj.GetLabels(), Annotations: obj.GetAnnotations(),
	}}
	it.forms[whole] = raw
	return it, nil
}

// fieldsOf returns what field selectors may ask for.
func fieldsOf(obj Object) fields.Set {
	set := fields.Set{"metadata.name": obj.GetName(), "metadata.namespace": obj.GetNamespace()}
	if svc, ok := obj.(*corev1.Service); ok {
		set["spec.clusterIP"] = svc.Spec.ClusterIP
	}
	return set
}

// Put stores obj, whose resource version it sets, and tells every watch of it. It
// returns when it began to write, with everything made ready before.
func (s *Server) Put(obj Object) (time.Time, error) {
	c, err := s.collectionOf(obj)
	if err != nil {
		return time.Time{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revision = s.revision.Add(1)
	obj.SetResourceVersion(fmt.Sprint(c.revision))
	it, err := c.newItem(obj)
	if err != nil {
		return time.Time{}, err
	}
	key, event := obj.GetNamespace()+"/"+obj.GetName(), eventModified
	if old := c.items[key]; old == nil {
		event = eventAdded
		c.items[key] = it
		c.order = append(c.order, it)
	} else {
		*old = *it
		it = old
	}
	return c.tell(event, it)
}

// Delete forgets the object of obj's name, and tells every watch of it, with what obj has
// and a new resource version. One that is not there is no error.
func (s *Server) Delete(obj Object) error {
	c, err := s.collectionOf(obj)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := obj.GetNamespace() + "/" + obj.GetName()
	it := c.items[key]
	if it == nil {
		return nil
	}
	c.revision = s.revision.Add(1)
	obj.SetResourceVersion(fmt.Sprint(c.revision))
	last, err := c.newItem(obj)
	if err != nil {
		return err
	}
	last.labels, last.fields = it.labels, it.fields // by which watches know it
	delete(c.items, key)
	c.order = slices.DeleteFunc(c.order, func(other *item) bool { return other == it })
	_, err = c.tell(eventDeleted, last)
	return err
}

// tell writes an event to every watch that selects it. c.mu is held.
func (c *collection) tell(event string, it *item) (time.Time, error) {
	frames := map[form][]byte{}
	for w := range c.watches {
		if frames[w.form] == nil && w.selects(it) {
			frame, err := it.frame(event, w.form)
			if err != nil {
				return time.Time{}, err
			}
			frames[w.form] = frame
		}
	}
	begin := time.Now()
	for w := range c.watches {
		if w.selects(it) {
			w.write(frames[w.form])
		}
	}
	return begin, nil
}

// Events returns how many events were posted.
func (s *Server) Events() int64 { return s.events.Load() }

// Listed returns when the last of the lists of everything was written to its
// client, zero if there was none.
func (s *Server) Listed() (last time.Time) {
	for _, c := range s.collections {
		c.mu.Lock()
		if c.listed.After(last) {
			last = c.listed
		}
		c.mu.Unlock()
	}
	return last
}

// ServeHTTP answers lists and watches, and takes events.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := s.collections[r.URL.Path]
	switch {
	case r.Method == http.MethodPost && isEvents(r.URL.Path):
		s.events.Add(1)
		body, _ := io.ReadAll(r.Body) // a client that goes away hears nothing anyway
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(body)
	case c == nil || r.Method != http.MethodGet:
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, r.Method+" "+r.URL.Path+" is not served")
	default:
		c.get(w, r)
	}
}
