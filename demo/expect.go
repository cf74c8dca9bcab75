// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// frontend is one address at which a Service is to be dialled.
type frontend struct {
	typ   string // ClusterIP, NodePort, LoadBalancer, ExternalIP; pod when headless
	addr  netip.AddrPort
	proto string // lab.TCP or lab.UDP
	port  string // name of the Service port
	local bool   // a loopback address: only the node dials it
}

// client is where traffic comes from.
type client struct {
	host   *lab.Host
	socket bool // translated when it connects; otherwise each packet is
	inside bool // a pod, or a process of the node
	about  string
}

// want is what the manifests say should happen.
type want struct {
	kind    lab.Kind
	servers map[string]netip.AddrPort // by pod: its own end of a connection
	weights map[string]int            // of the servers; nil where nothing is balanced
	even    bool                      // the servers take turns
	sticky  bool                      // one server gets all
	chance  bool                      // each server gets some, by chance
	sources []netip.Addr              // what the server may see as its client
}

// headless tells whether clients are to reach the pods directly.
func (s *service) headless() bool { return s.spec.ClusterIP == corev1.ClusterIPNone }

// frontends lists where s answers, as Kubernetes defines it.
func (s *service) frontends() []frontend {
	var out []frontend
	if s.spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	if s.headless() {
		for _, e := range s.endpoints {
			out = append(out, frontend{typ: "pod", addr: e.addr, proto: e.proto, port: e.port})
		}
		return out
	}
	for _, p := range s.spec.Ports {
		for _, text := range s.clusterIPs() {
			vip, err := netip.ParseAddr(text)
			if err != nil {
				continue // the API server would not have it
			}
			add := func(typ string, addr netip.Addr, port int32) {
				out = append(out, frontend{
					typ: typ, addr: netip.AddrPortFrom(addr, uint16(port)), proto: protoOf(&p.Protocol),
					port: p.Name, local: addr.IsLoopback(),
				})
			}
			add("ClusterIP", vip, p.Port)
			for _, addr := range nodePortAddrs(vip.Is4()) {
				if p.NodePort != 0 {
					add("NodePort", addr, p.NodePort)
				}
			}
			for _, ing := range s.ingress {
				proxied := ing.IPMode != nil && *ing.IPMode == corev1.LoadBalancerIPModeProxy
				if addr, err := netip.ParseAddr(ing.IP); err == nil && !proxied && addr.Is4() == vip.Is4() {
					add("LoadBalancer", addr, p.Port)
				}
			}
			for _, ext := range s.spec.ExternalIPs {
				if addr, err := netip.ParseAddr(ext); err == nil && addr.Is4() == vip.Is4() {
					add("ExternalIP", addr, p.Port)
				}
			}
		}
	}
	return out
}

func (s *service) clusterIPs() []string {
	if len(s.spec.ClusterIPs) == 0 {
		return []string{s.spec.ClusterIP}
	}
	return s.spec.ClusterIPs
}

// nodePortAddrs are the node's addresses of one family, loopback last.
func nodePortAddrs(v4 bool) []netip.Addr {
	if v4 {
		return []netip.Addr{lab.NodeAddr4, lab.NodeSecond4, netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return []netip.Addr{lab.NodeAddr6, lab.NodeSecond6, netip.IPv6Loopback()}
}

// expect says what Kubernetes demands when c dials f of s.
func (s *service) expect(f frontend, c *client) want {
	if s.headless() {
		return want{
			kind:    lab.OK,
			servers: s.serversAt(f),
			sources: c.addrs(f),
		}
	}
	local := s.localOnly(f, c)
	w := want{
		kind: lab.OK, servers: s.pool(f, local), weights: map[string]int{},
		even: s.algorithm == "round-robin", chance: s.algorithm == "random", sticky: s.sticky(),
	}
	if len(w.servers) == 0 {
		w.kind = lab.Refused
		if local && len(s.pool(f, false)) > 0 {
			w.kind = lab.Timeout
		}
		return w
	}
	for _, e := range s.endpoints {
		if w.servers[e.pod] == e.addr {
			w.weights[e.pod] = e.weight
		}
	}
	w.sources = c.addrs(f)
	if s.masquerades(f, c) {
		w.sources = nodeAddrs(f)
	}
	return w
}

// localOnly tells whether only endpoints on the node may answer. What comes
// from inside to an external address may use all of them.
func (s *service) localOnly(f frontend, c *client) bool {
	if f.typ == "ClusterIP" {
		p := s.spec.InternalTrafficPolicy
		return p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal
	}
	return s.spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && !c.inside
}

// masquerades tells whether the server sees the node instead of the client.
// Sockets are never masqueraded: they connect to the server from the start.
func (s *service) masquerades(f frontend, c *client) bool {
	switch {
	case c.socket:
		return false
	case f.typ == "ClusterIP":
		return !c.inside
	}
	return s.spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal
}

// pool returns the endpoints that may answer at f: the ready ones or, without
// one, those that still serve while they terminate; of these, who has a weight.
func (s *service) pool(f frontend, local bool) map[string]netip.AddrPort {
	choose := func(usable func(endpoint) bool) (out map[string]netip.AddrPort, some bool) {
		out = map[string]netip.AddrPort{}
		for _, e := range s.endpoints {
			if e.port == f.port && e.proto == f.proto && e.addr.Addr().Is4() == f.addr.Addr().Is4() &&
				(!local || e.node == lab.Node) && usable(e) {
				some = true
				if e.weight > 0 {
					out[e.pod] = e.addr
				}
			}
		}
		return out, some
	}
	out, some := choose(func(e endpoint) bool { return e.ready })
	if !some {
		out, _ = choose(func(e endpoint) bool { return e.terminating })
	}
	return out
}

// serversAt is the pod whose own address f is.
func (s *service) serversAt(f frontend) map[string]netip.AddrPort {
	i := slices.IndexFunc(s.endpoints, func(e endpoint) bool { return e.addr == f.addr && e.proto == f.proto })
	return map[string]netip.AddrPort{s.endpoints[i].pod: f.addr}
}

// addrs are the client's own addresses of f's family.
func (c *client) addrs(f frontend) []netip.Addr {
	switch {
	case c.host.Name == lab.Node:
		return nodeAddrs(f)
	case f.addr.Addr().Is4():
		return []netip.Addr{c.host.Addr4}
	}
	return []netip.Addr{c.host.Addr6}
}

func nodeAddrs(f frontend) []netip.Addr { return nodePortAddrs(f.addr.Addr().Is4())[:2] }

// title is what the table says of a Service.
func (s *service) title() string {
	parts := []string{string(s.spec.Type), s.algorithm}
	switch {
	case s.spec.Type == corev1.ServiceTypeExternalName:
		return "ExternalName, an alias in DNS: left alone"
	case s.headless():
		parts = []string{"headless: left alone, clients reach the pods directly"}
	case len(s.endpoints) == 0:
		parts = append(parts, "no endpoint: refused at once")
	}
	if s.spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		parts = append(parts, "externalTrafficPolicy Local")
	}
	return strings.Join(parts, ", ")
}
