// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// slice is what is kept of an EndpointSlice. It is never changed after it was
// handed to a Store.
type slice struct {
	obj       lb.Object // the slice's own name
	uid       types.UID
	service   string    // the Service's name; empty: belongs to nobody
	family    lb.Family // 0 when the address type is not an IP family
	weight    *weight   // nil: it says nothing
	ports     []slicePort
	endpoints []endpoint // sorted by address
	problems  []Problem

	// triggered is when what it says of endpoints came about, by the clock of the
	// controller that wrote it, in nanoseconds since 1970; 0: not known. Source: the
	// annotation endpoints.kubernetes.io/last-change-trigger-time.
	triggered int64
}

// equal tells whether s and t are one slice that says the same of endpoints.
func (s *slice) equal(t *slice) bool {
	return s.obj == t.obj && s.uid == t.uid && s.service == t.service && s.family == t.family && s.weight.equal(t.weight) &&
		slices.Equal(s.ports, t.ports) && slices.Equal(s.endpoints, t.endpoints) &&
		slices.EqualFunc(s.problems, t.problems, Problem.same)
}

type slicePort struct {
	name  string
	proto lb.Proto
	port  uint16
}

// endpoint is 56 bytes; a cluster has a hundred thousand of them.
type endpoint struct {
	addr  netip.Addr
	zones zoneSet
	pod   ref // 0: it is none
	node  ref // 0: it is on none
	flags flags
}

// flags are the conditions of an endpoint, seen from this node.
type flags uint8

const (
	ready flags = 1 << iota
	serving
	terminating
	local         // runs on this node
	hasNodeHints  // has hints for nodes
	hintsThisNode // and this node is one of them

	never flags = 1 << 7 // no endpoint has it
)

func (f flags) has(all flags) bool { return f&all == all }

// fallback tells whether the endpoint may serve when no endpoint is ready.
func (f flags) fallback() bool { return f.has(serving | terminating) }

// zoneSet is a set of zone names, interned because few sets exist.
type zoneSet struct {
	joined unique.Handle[string] // the zero Handle is the empty set
}

const zoneSeparator = "\x00"

func makeZoneSet(hints []discovery.ForZone) zoneSet {
	switch len(hints) {
	case 0:
		return zoneSet{}
	case 1:
		return zoneSet{unique.Make(hints[0].Name)}
	}
	names := make([]string, len(hints))
	for i, h := range hints {
		names[i] = h.Name
	}
	slices.Sort(names)
	return zoneSet{unique.Make(strings.Join(slices.Compact(names), zoneSeparator))}
}

func (z zoneSet) empty() bool { return z == zoneSet{} }

func (z zoneSet) has(zone string) bool {
	if z.empty() {
		return false
	}
	joined := z.joined.Value()
	if len(joined) <= len(zone) { // it is one name, or too short
		return joined == zone
	}
	for name := range strings.SplitSeq(joined, zoneSeparator) {
		if name == zone {
			return true
		}
	}
	return false
}

// parseSlice reads what matters of in, as seen from the node o names.
func parseSlice(in *discovery.EndpointSlice, o *Options) *slice {
	s := &slice{obj: lb.Object{Namespace: in.Namespace, Name: in.Name}, uid: in.UID}
	if _, headless := in.Labels[labelHeadless]; headless {
		return s
	}
	s.service = in.Labels[discovery.LabelServiceName]
	if s.service == "" {
		p := problems{kind: KindEndpointSlice, object: s.obj}
		p.add("metadata.labels", ReasonNoService, errors.New("no "+discovery.LabelServiceName+": the slice is ignored"))
		s.problems = p.list()
		return s
	}
	p := &problems{
		kind:   KindService,
		object: lb.Object{Namespace: in.Namespace, Name: s.service},
		prefix: "EndpointSlice " + in.Name + ": ",
	}
	switch in.AddressType {
	case discovery.AddressTypeIPv4:
		s.family = lb.IPv4
	case discovery.AddressTypeIPv6:
		s.family = lb.IPv6
	default:
		p.add("addressType", ReasonUnsupportedAddress, fmt.Errorf("%q: want IPv4 or IPv6", in.AddressType))
	}
	if s.weight = readWeight(in.Annotations); s.weight != nil && s.weight.err != nil {
		p.add(annotationField(keyWeight), ReasonInvalidWeight, s.weight.err)
	}
	if s.family != 0 {
		s.parsePorts(in, p)
		s.parseEndpoints(in, o, p)
		s.triggered = parseTrigger(in.Annotations)
	}
	s.problems = p.list()
	return s
}

func (s *slice) parsePorts(in *discovery.EndpointSlice, p *problems) {
	for i, sp := range in.Ports {
		wrong := func(field, reason string, err error) { p.add(fmt.Sprintf("ports[%d].%s", i, field), reason, err) }
		proto := lb.TCP
		var err error
		if sp.Protocol != nil {
			proto, err = lb.ParseProto(string(*sp.Protocol))
		}
		switch {
		case sp.Name == nil:
			wrong("name", ReasonInvalidPort, errors.New("is not set"))
		case sp.Port == nil:
			wrong("port", ReasonInvalidPort, errors.New("is not set: all ports is not supported"))
		case !validPort(*sp.Port):
			wrong("port", ReasonInvalidPort, fmt.Errorf("%d is outside 1..65535", *sp.Port))
		case err != nil:
			wrong("protocol", ReasonUnsupportedProto, err)
		default:
			s.ports = append(s.ports, slicePort{*sp.Name, proto, uint16(*sp.Port)})
		}
	}
}

func (s *slice) parseEndpoints(in *discovery.EndpointSlice, o *Options, p *problems) {
	s.endpoints = make([]endpoint, 0, len(in.Endpoints))
	for i := range in.Endpoints {
		ep := &in.Endpoints[i]
		if len(ep.Addresses) == 0 {
			p.add(fmt.Sprintf("endpoints[%d].addresses", i), ReasonInvalidAddress, errors.New("is empty"))
			continue
		}
		addr, err := parseEndpointIP(ep.Addresses[0])
		if err == nil && lb.FamilyOf(addr) != s.family {
			err = fmt.Errorf("%s is not %s, the slice's address type", addr, s.family)
		}
		if err != nil {
			p.add(fmt.Sprintf("endpoints[%d].addresses[0]", i), ReasonInvalidAddress, err)
			continue
		}
		out := endpoint{addr: addr, flags: conditions(ep, o.NodeName)}
		if ep.Hints != nil {
			out.zones = makeZoneSet(ep.Hints.ForZones)
		}
		if t := ep.TargetRef; t != nil && t.Kind == KindPod {
			out.pod = makeRef(KindPod, lb.Object{Namespace: cmp.Or(t.Namespace, in.Namespace), Name: t.Name})
		}
		if ep.NodeName != nil && *ep.NodeName != "" {
			out.node = makeRef(KindNode, lb.Object{Name: *ep.NodeName})
		}
		s.endpoints = append(s.endpoints, out)
	}
	sortEndpoints(s.endpoints)
}

// parseTrigger returns slice.triggered. What is no time is as none: it is of the
// control plane's making, and only a metric suffers.
func parseTrigger(as map[string]string) int64 {
	text, ok := as[v1.EndpointsLastChangeTriggerTime]
	if !ok {
		return 0
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return 0
	}
	return t.UnixNano()
}

func conditions(ep *discovery.Endpoint, node string) flags {
	var f flags
	set := func(on bool, bit flags) {
		if on {
			f |= bit
		}
	}
	c := &ep.Conditions
	set(c.Ready == nil || *c.Ready, ready)
	set(c.Serving == nil || *c.Serving, serving)
	set(c.Terminating != nil && *c.Terminating, terminating)
	set(node != "" && ep.NodeName != nil && *ep.NodeName == node, local)
	if ep.Hints != nil {
		for _, hint := range ep.Hints.ForNodes {
			set(true, hasNodeHints)
			set(node != "" && hint.Name == node, hintsThisNode)
		}
	}
	return f
}

// parseEndpointIP reads an address that the API server would accept for an
// endpoint: nothing that stays on one host or link.
func parseEndpointIP(text string) (netip.Addr, error) {
	addr, err := parseIP(text)
	if err == nil && (addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast()) {
		err = fmt.Errorf("%s cannot be the address of an endpoint", addr)
	}
	return addr, err
}
