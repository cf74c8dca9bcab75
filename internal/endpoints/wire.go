// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// wire is what is left of a message of protobuf. Parts of it are read without a copy.
// Source: protobuf.dev, "Encoding".
type wire struct {
	rest string
	bad  bool // it is no message: nothing that was read counts
}

// The types of fields: the low bits of what stands before a value.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

// field is one value of a message.
type field struct {
	key    uint64 // number<<3 | type
	number uint64 // of a varint
	bytes  string // of everything else
}

// The keys of a field of this number.
func asVarint(number uint64) uint64 { return number<<3 | wireVarint }
func asBytes(number uint64) uint64  { return number<<3 | wireBytes }

func (w *wire) varint() (v uint64) {
	for i := range min(len(w.rest), 10) {
		b := w.rest[i]
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			w.rest = w.rest[i+1:]
			return v
		}
	}
	w.bad = true
	return 0
}

// take returns the next n bytes.
func (w *wire) take(n uint64) (s string) {
	if n > uint64(len(w.rest)) {
		w.bad = true
		return ""
	}
	s, w.rest = w.rest[:n], w.rest[n:]
	return s
}

// next reads one field. It returns false at the end, and where there is no field.
func (w *wire) next(f *field) bool {
	if w.bad || w.rest == "" {
		return false
	}
	f.key = w.varint()
	switch f.key & 7 {
	case wireVarint:
		f.number = w.varint()
	case wireBytes:
		f.bytes = w.take(w.varint())
	case wireFixed64:
		f.bytes = w.take(8)
	case wireFixed32:
		f.bytes = w.take(4)
	default: // groups, which nobody writes
		w.bad = true
	}
	return !w.bad
}

// sliceReader reads EndpointSlices as an API server sends them, but only what parseSlice
// looks at, and into memory that it uses again. Most of what a slice has on the wire is
// names that nobody asks for; in a real cluster, the record of who wrote which field.
type sliceReader struct {
	slice     discovery.EndpointSlice
	endpoints []readEndpoint
	ports     []readPort
	bad       bool
}

// readEndpoint is what the pointers of an endpoint lead to.
type readEndpoint struct {
	addresses  [1]string
	node       string
	target     v1.ObjectReference
	hints      discovery.EndpointHints
	conditions [3]bool
}

type readPort struct {
	name  string
	proto v1.Protocol
	port  int32
}

// read returns the slice that raw is, until the next call; ok is false where raw had
// better be left to the library.
func (r *sliceReader) read(raw string) (_ *discovery.EndpointSlice, ok bool) {
	r.reset(raw)
	w := wire{rest: raw}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			r.meta(f.bytes)
		case asBytes(2):
			r.endpoint(f.bytes)
		case asBytes(3):
			r.port(f.bytes)
		case asBytes(4):
			r.slice.AddressType = discovery.AddressType(f.bytes)
		}
	}
	return &r.slice, !w.bad && !r.bad
}

// reset makes r a slice that says nothing, with room for as many endpoints and ports as
// raw has.
func (r *sliceReader) reset(raw string) {
	endpoints, ports := 0, 0
	w := wire{rest: raw}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(2):
			endpoints++
		case asBytes(3):
			ports++
		}
	}
	clear(r.slice.Labels)
	clear(r.slice.Annotations)
	r.slice = discovery.EndpointSlice{Endpoints: r.slice.Endpoints[:0], Ports: r.slice.Ports[:0], ObjectMeta: r.slice.ObjectMeta}
	m := &r.slice.ObjectMeta
	m.Name, m.Namespace, m.UID, m.ResourceVersion = "", "", "", ""
	r.endpoints = slices.Grow(r.endpoints[:0], endpoints)
	r.ports = slices.Grow(r.ports[:0], ports)
	r.bad = false
}

// ended notes whether a message within r's slice was one.
func (r *sliceReader) ended(w *wire) { r.bad = r.bad || w.bad }

func (r *sliceReader) meta(message string) {
	m := &r.slice.ObjectMeta
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			m.Name = strings.Clone(f.bytes) // which is kept, but not the whole of what was read
		case asBytes(3):
			m.Namespace = strings.Clone(f.bytes)
		case asBytes(5):
			m.UID = types.UID(strings.Clone(f.bytes))
		case asBytes(6):
			m.ResourceVersion = f.bytes
		case asBytes(11):
			m.Labels = r.entry(m.Labels, f.bytes)
		case asBytes(12):
			m.Annotations = r.entry(m.Annotations, f.bytes)
		}
	}
	r.ended(&w)
}

// entry adds what message is to m.
func (r *sliceReader) entry(m map[string]string, message string) map[string]string {
	var pair [2]string
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			pair[0] = f.bytes
		case asBytes(2):
			pair[1] = f.bytes
		}
	}
	r.ended(&w)
	if pair[0] == discovery.LabelServiceName {
		pair[1] = strings.Clone(pair[1])
	}
	if m == nil {
		m = map[string]string{}
	}
	m[pair[0]] = pair[1]
	return m
}

func (r *sliceReader) endpoint(message string) {
	r.endpoints = append(r.endpoints, readEndpoint{})
	to := &r.endpoints[len(r.endpoints)-1]
	var ep discovery.Endpoint
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			if len(ep.Addresses) == 0 { // the first one counts
				to.addresses[0] = f.bytes
				ep.Addresses = to.addresses[:]
			}
		case asBytes(2):
			r.conditions(f.bytes, &ep.Conditions, to)
		case asBytes(4):
			ep.TargetRef = &to.target
			r.target(f.bytes, &to.target)
		case asBytes(6):
			to.node = f.bytes
			ep.NodeName = &to.node
		case asBytes(8):
			ep.Hints = &to.hints
			r.hints(f.bytes, &to.hints)
		}
	}
	r.ended(&w)
	r.slice.Endpoints = append(r.slice.Endpoints, ep)
}

func (r *sliceReader) conditions(message string, c *discovery.EndpointConditions, to *readEndpoint) {
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		for i, at := range []**bool{&c.Ready, &c.Serving, &c.Terminating} {
			if f.key == asVarint(uint64(i+1)) {
				to.conditions[i] = f.number != 0
				*at = &to.conditions[i]
			}
		}
	}
	r.ended(&w)
}

func (r *sliceReader) target(message string, ref *v1.ObjectReference) {
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			ref.Kind = f.bytes
		case asBytes(2):
			ref.Namespace = f.bytes
		case asBytes(3):
			ref.Name = f.bytes
		}
	}
	r.ended(&w)
}

func (r *sliceReader) hints(message string, h *discovery.EndpointHints) {
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			h.ForZones = append(h.ForZones, discovery.ForZone{Name: r.only(f.bytes)})
		case asBytes(2):
			h.ForNodes = append(h.ForNodes, discovery.ForNode{Name: r.only(f.bytes)})
		}
	}
	r.ended(&w)
}

// only returns the first field of a message, a string.
func (r *sliceReader) only(message string) (s string) {
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		if f.key == asBytes(1) {
			s = f.bytes
		}
	}
	r.ended(&w)
	return s
}

func (r *sliceReader) port(message string) {
	r.ports = append(r.ports, readPort{})
	to := &r.ports[len(r.ports)-1]
	var p discovery.EndpointPort
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			to.name = strings.Clone(f.bytes)
			p.Name = &to.name
		case asBytes(2):
			to.proto = v1.Protocol(f.bytes)
			p.Protocol = &to.proto
		case asVarint(3):
			to.port = int32(f.number)
			p.Port = &to.port
		}
	}
	r.ended(&w)
	r.slice.Ports = append(r.slice.Ports, p)
}
