// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// span is a run of bytes, and the same as text: parts of it are kept without a copy.
type span struct {
	raw  []byte
	text string
}

// part returns the bytes from one index up to another.
func (s span) part(from, to int) span { return span{s.raw[from:to], s.text[from:to]} }

// wire is what is left of a message of protobuf.
type wire struct {
	rest span
	bad  bool // it is no message: nothing that was read counts
}

// field is one value of a message.
type field struct {
	key    uint64 // number and type, as on the wire
	number uint64 // of a varint
	bytes  span   // of a string or a message
}

// The keys of a field of this number.
func asVarint(n protowire.Number) uint64 { return protowire.EncodeTag(n, protowire.VarintType) }
func asBytes(n protowire.Number) uint64  { return protowire.EncodeTag(n, protowire.BytesType) }

// skip leaves n bytes behind; less than 0: there is no field.
func (w *wire) skip(n int) bool {
	if n < 0 {
		w.bad = true
		return false
	}
	w.rest = w.rest.part(n, len(w.rest.raw))
	return true
}

// next reads one field. It returns false at the end, and where there is no field.
func (w *wire) next(f *field) bool {
	if w.bad || len(w.rest.raw) == 0 {
		return false
	}
	number, typ, n := protowire.ConsumeTag(w.rest.raw)
	if !w.skip(n) {
		return false
	}
	f.key = protowire.EncodeTag(number, typ)
	switch typ {
	case protowire.VarintType:
		f.number, n = protowire.ConsumeVarint(w.rest.raw)
	case protowire.BytesType:
		var v []byte
		if v, n = protowire.ConsumeBytes(w.rest.raw); n >= 0 {
			f.bytes = w.rest.part(n-len(v), n)
		}
	case protowire.StartGroupType, protowire.EndGroupType: // which nobody writes
		n = -1
	default:
		n = protowire.ConsumeFieldValue(number, typ, w.rest.raw)
	}
	return w.skip(n)
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
func (r *sliceReader) read(raw span) (_ *discovery.EndpointSlice, ok bool) {
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
			r.slice.AddressType = discovery.AddressType(f.bytes.text)
		}
	}
	return &r.slice, !w.bad && !r.bad
}

// reset makes r a slice that says nothing, with room for as many endpoints and ports as
// raw has.
func (r *sliceReader) reset(raw span) {
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

func (r *sliceReader) meta(message span) {
	m := &r.slice.ObjectMeta
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			m.Name = strings.Clone(f.bytes.text) // which is kept, but not the whole of what was read
		case asBytes(3):
			m.Namespace = strings.Clone(f.bytes.text)
		case asBytes(5):
			m.UID = types.UID(strings.Clone(f.bytes.text))
		case asBytes(6):
			m.ResourceVersion = f.bytes.text
		case asBytes(11):
			m.Labels = r.entry(m.Labels, f.bytes)
		case asBytes(12):
			m.Annotations = r.entry(m.Annotations, f.bytes)
		}
	}
	r.ended(&w)
}

// entry adds what message is to m.
func (r *sliceReader) entry(m map[string]string, message span) map[string]string {
	var pair [2]string
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			pair[0] = f.bytes.text
		case asBytes(2):
			pair[1] = f.bytes.text
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

func (r *sliceReader) endpoint(message span) {
	r.endpoints = append(r.endpoints, readEndpoint{})
	to := &r.endpoints[len(r.endpoints)-1]
	var ep discovery.Endpoint
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			if len(ep.Addresses) == 0 { // the first one counts
				to.addresses[0] = f.bytes.text
				ep.Addresses = to.addresses[:]
			}
		case asBytes(2):
			r.conditions(f.bytes, &ep.Conditions, to)
		case asBytes(4):
			ep.TargetRef = &to.target
			r.target(f.bytes, &to.target)
		case asBytes(6):
			to.node = f.bytes.text
			ep.NodeName = &to.node
		case asBytes(8):
			ep.Hints = &to.hints
			r.hints(f.bytes, &to.hints)
		}
	}
	r.ended(&w)
	r.slice.Endpoints = append(r.slice.Endpoints, ep)
}

func (r *sliceReader) conditions(message span, c *discovery.EndpointConditions, to *readEndpoint) {
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		for i, at := range []**bool{&c.Ready, &c.Serving, &c.Terminating} {
			if f.key == asVarint(protowire.Number(i+1)) {
				to.conditions[i] = f.number != 0
				*at = &to.conditions[i]
			}
		}
	}
	r.ended(&w)
}

func (r *sliceReader) target(message span, ref *v1.ObjectReference) {
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			ref.Kind = f.bytes.text
		case asBytes(2):
			ref.Namespace = f.bytes.text
		case asBytes(3):
			ref.Name = f.bytes.text
		}
	}
	r.ended(&w)
}

func (r *sliceReader) hints(message span, h *discovery.EndpointHints) {
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
func (r *sliceReader) only(message span) (s string) {
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		if f.key == asBytes(1) {
			s = f.bytes.text
		}
	}
	r.ended(&w)
	return s
}

func (r *sliceReader) port(message span) {
	r.ports = append(r.ports, readPort{})
	to := &r.ports[len(r.ports)-1]
	var p discovery.EndpointPort
	w := wire{rest: message}
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			to.name = strings.Clone(f.bytes.text)
			p.Name = &to.name
		case asBytes(2):
			to.proto = v1.Protocol(f.bytes.text)
			p.Protocol = &to.proto
		case asVarint(3):
			to.port = int32(f.number)
			p.Port = &to.port
		}
	}
	r.ended(&w)
	r.slice.Ports = append(r.slice.Ports, p)
}
