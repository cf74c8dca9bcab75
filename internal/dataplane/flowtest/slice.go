// SPDX-License-Identifier: Apache-2.0

package flowtest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// slice makes an EndpointSlice of one family from "words> endpoints", or nil if the
// words say that there is none. An endpoint is NAME:CONDITIONS@ZONE%NODE; ZONE and
// NODE are hints. Ports of a Service lead to the backends' first port.
func (b *builder) slice(svc *v1.Service, name string, f lb.Family, text string) *discovery.EndpointSlice {
	sl := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, Labels: map[string]string{discovery.LabelServiceName: svc.Name},
		},
		AddressType: discovery.AddressType(f.String()),
	}
	options, eps, found := strings.Cut(text, ">")
	if !found {
		options, eps = "", text
	}
	for _, p := range svc.Spec.Ports {
		sl.Ports = append(sl.Ports, discovery.EndpointPort{
			Name: ptr(p.Name), Protocol: ptr(p.Protocol), Port: ptr(int32(b.net.Ports[0])),
		})
	}
	for _, word := range strings.Fields(options) {
		if !b.edit(sl, f, word) {
			return nil
		}
	}
	for _, word := range strings.Fields(eps) {
		sl.Endpoints = append(sl.Endpoints, b.endpoint(f, word))
	}
	return sl
}

// edit applies a word to a slice. It returns false if there is no such slice.
func (b *builder) edit(sl *discovery.EndpointSlice, f lb.Family, word string) bool {
	keep := func(proto v1.Protocol) {
		sl.Ports = slices.DeleteFunc(sl.Ports, func(p discovery.EndpointPort) bool { return *p.Protocol != proto })
	}
	switch word {
	case "v4", "v6":
		return strings.HasSuffix(f.String(), word)
	case "tcp":
		keep(v1.ProtocolTCP)
	case "udp":
		keep(v1.ProtocolUDP)
	case "#2": // at the second port
		for i := range sl.Ports {
			sl.Ports[i].Port = ptr(int32(b.net.Ports[1]))
		}
	case "81": // only of port 81, at the second port
		sl.Ports = slices.DeleteFunc(sl.Ports, func(p discovery.EndpointPort) bool { return len(*p.Name) < 2 })
		return b.edit(sl, f, "#2")
	case "80": // only of port 80
		sl.Ports = slices.DeleteFunc(sl.Ports, func(p discovery.EndpointPort) bool { return len(*p.Name) > 1 })
	case "headless":
		sl.Labels[v1.IsHeadlessService] = ""
	case "orphan":
		delete(sl.Labels, discovery.LabelServiceName)
	case "other":
		sl.Labels[discovery.LabelServiceName] = "somebody-else"
	case "fqdn":
		sl.AddressType = discovery.AddressTypeFQDN
	case "nameless":
		for i := range sl.Ports {
			sl.Ports[i].Name = nil
		}
	case "asudp": // the names of the ports, and another protocol
		for i := range sl.Ports {
			sl.Ports[i].Protocol = ptr(v1.ProtocolUDP)
		}
	case "portless":
		for i := range sl.Ports {
			sl.Ports[i].Port = nil
		}
	default:
		panic("unknown word " + word)
	}
	return true
}

// endpoint reads one endpoint.
func (b *builder) endpoint(f lb.Family, text string) discovery.Endpoint {
	text, nodeHint, _ := strings.Cut(text, "%")
	text, zone, _ := strings.Cut(text, "@")
	name, conditions, _ := strings.Cut(text, ":")
	var addrs []string
	for _, n := range strings.Split(name, "+") { // b0+b1: one endpoint with two addresses
		addrs = append(addrs, b.net.backend(n, f).Addr().String())
	}
	where := hereName
	if strings.HasPrefix(name, "r") {
		where = thereName
	}
	ep := discovery.Endpoint{Addresses: addrs, NodeName: &where}
	if zone != "" || nodeHint != "" {
		ep.Hints = &discovery.EndpointHints{}
		for _, z := range fields(zone) {
			ep.Hints.ForZones = append(ep.Hints.ForZones, discovery.ForZone{Name: z})
		}
		for _, n := range fields(nodeHint) {
			ep.Hints.ForNodes = append(ep.Hints.ForNodes, discovery.ForNode{Name: n})
		}
	}
	ep.Conditions = discovery.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)}
	for _, c := range fields(conditions) {
		b.condition(&ep, c)
	}
	return ep
}

func fields(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func (b *builder) condition(ep *discovery.Endpoint, word string) {
	c := &ep.Conditions
	switch word {
	case "unsaid":
		*c = discovery.EndpointConditions{}
	case "notready": // and does not serve
		c.Ready, c.Serving = ptr(false), ptr(false)
	case "busy": // serves, and should not get more: as a readiness gate has it
		c.Ready = ptr(false)
	case "term": // terminates, and serves still
		c.Ready, c.Terminating = ptr(false), ptr(true)
	case "gone": // terminates, and serves no longer
		c.Ready, c.Serving, c.Terminating = ptr(false), ptr(false), ptr(true)
	case "published": // terminates, and is published all the same
		c.Terminating = ptr(true)
	case "nodeless":
		ep.NodeName = nil
	default:
		panic("unknown condition " + word)
	}
}

// backend returns the address that a name stands for: b0, b1, b2 are on this node,
// r0 is on another one, and #2 says that it is the second port.
func (n *Network) backend(name string, f lb.Family) netip.AddrPort {
	name, second, _ := strings.Cut(name, "#")
	i, ok := map[string]int{"b0": 0, "b1": 1, "b2": 2, "r0": 3}[name]
	if !ok {
		panic(fmt.Sprintf("unknown backend %q", name))
	}
	port := n.Ports[0]
	if second == "2" {
		port = n.Ports[1]
	}
	if f == lb.IPv6 {
		return netip.AddrPortFrom(n.Backends[i].V6, port)
	}
	return netip.AddrPortFrom(n.Backends[i].V4, port)
}
