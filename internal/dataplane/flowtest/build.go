// SPDX-License-Identifier: Apache-2.0

package flowtest

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	namespace = "flow"
	hereName  = "here"
	thereName = "there"
	firstPort = 30500 // of the NodePorts
)

var families = []lb.Family{lb.IPv4, lb.IPv6}

func ptr[T any](v T) *T { return &v }

// built is a Service's objects, and where it is dialled.
type built struct {
	svc     *v1.Service
	slices  []*discovery.EndpointSlice
	targets map[string][]netip.Addr // by name of the target: an address of each family
	port    int32                   // its NodePort; that of port 81 is the next one
}

// builder makes objects from words.
type builder struct {
	net   *Network
	last  map[netip.Prefix]netip.Addr
	ports int32
	made  map[string]*built // by name, those of the rule
}

func newBuilder(n *Network) *builder {
	return &builder{net: n, last: map[netip.Prefix]netip.Addr{}, ports: firstPort}
}

// vips returns a fresh address of each family.
func (b *builder) vips(ps []netip.Prefix) []netip.Addr {
	var addrs []netip.Addr
	for _, p := range ps {
		last, ok := b.last[p]
		if !ok {
			last = p.Masked().Addr().Next().Next() // leave the first ones to the network
		}
		b.last[p] = last.Next()
		addrs = append(addrs, last.Next())
	}
	return addrs
}

// build makes the objects of s. Without words it is dual stack, of type ClusterIP,
// with port 80 for TCP and for UDP.
func (b *builder) build(name string, s *Service) *built {
	cluster := b.vips(b.net.ServiceVIPs)
	out := &built{port: b.ports, targets: map[string][]netip.Addr{"cluster": cluster}, svc: &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: metav1.Unix(1_700_000_000, 0)},
		Spec: v1.ServiceSpec{
			Type:       v1.ServiceTypeClusterIP,
			ClusterIPs: texts(cluster),
			IPFamilies: []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol},
			Ports: []v1.ServicePort{
				{Name: "t", Protocol: v1.ProtocolTCP, Port: 80}, {Name: "u", Protocol: v1.ProtocolUDP, Port: 80},
			},
		},
	}}
	out.targets["node"] = b.net.primary()
	out.targets["node2"] = b.net.second()
	out.targets["localhost"] = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	b.ports += 2
	for _, word := range strings.Fields(s.Spec) {
		key, value, _ := strings.Cut(word, "=")
		if !b.shape(out, key, value) && !b.expose(out, key, value) {
			panic(fmt.Sprintf("service %s: unknown word %q", name, word))
		}
	}
	out.numberPorts()
	out.svc.Spec.ClusterIP = out.svc.Spec.ClusterIPs[0]
	out.slices = b.slices(out.svc, s.Eps)
	return out
}

// slices makes the EndpointSlices of svc, of each family, from "slice | slice".
func (b *builder) slices(svc *v1.Service, eps string) []*discovery.EndpointSlice {
	var out []*discovery.EndpointSlice
	for i, text := range strings.Split(eps, "|") {
		for _, f := range families {
			if sl := b.slice(svc, fmt.Sprintf("%s-%d-%s", svc.Name, i, strings.ToLower(f.String())), f, text); sl != nil {
				out = append(out, sl)
			}
		}
	}
	return out
}

func texts(addrs []netip.Addr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// shape applies a word about families, ports, policies and who serves the Service.
func (b *builder) shape(out *built, key, value string) bool {
	spec := &out.svc.Spec
	switch key {
	case "v4", "v6":
		i := map[string]int{"v4": 0, "v6": 1}[key]
		spec.ClusterIPs, spec.IPFamilies = spec.ClusterIPs[i:i+1], spec.IPFamilies[i:i+1]
	case "v6first":
		slices.Reverse(spec.ClusterIPs)
		slices.Reverse(spec.IPFamilies)
	case "tcp", "udp": // it has only that port
		i := map[string]int{"tcp": 0, "udp": 1}[key]
		spec.Ports = spec.Ports[i : i+1]
	case "two": // it has port 81, too
		spec.Ports = append(spec.Ports,
			v1.ServicePort{Name: "t2", Protocol: v1.ProtocolTCP, Port: 81}, v1.ServicePort{Name: "u2", Protocol: v1.ProtocolUDP, Port: 81})
	case "itp":
		spec.InternalTrafficPolicy = ptr(v1.ServiceInternalTrafficPolicyLocal)
	case "etp":
		spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyLocal
	case "sticky":
		spec.SessionAffinity = v1.ServiceAffinityClientIP
		if seconds, err := strconv.ParseInt(value, 10, 32); err == nil {
			spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: ptr(int32(seconds))}}
		}
	case "publish":
		spec.PublishNotReadyAddresses = true
	case "headless":
		spec.ClusterIPs = []string{v1.ClusterIPNone}
	case "external-name":
		spec.Type, spec.ExternalName = v1.ServiceTypeExternalName, "example.org"
	case "foreign":
		out.svc.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": value}
	case "reset":
		out.svc.Annotations = map[string]string{"lbproxy.io/reset-on-removal": "true"}
	case "old":
		out.svc.CreationTimestamp.Time = out.svc.CreationTimestamp.Add(-time.Hour)
	default:
		return false
	}
	return true
}

// expose applies a word about addresses beside the cluster IP.
func (b *builder) expose(out *built, key, value string) bool {
	spec := &out.svc.Spec
	ingress := func(addrs []netip.Addr, mode *v1.LoadBalancerIPMode) {
		for _, a := range addrs {
			out.svc.Status.LoadBalancer.Ingress = append(out.svc.Status.LoadBalancer.Ingress,
				v1.LoadBalancerIngress{IP: a.String(), IPMode: mode})
		}
	}
	fresh := func(target string) []netip.Addr {
		out.targets[target] = b.vips(b.net.ExternalVIPs)
		return out.targets[target]
	}
	switch key {
	case "np":
		spec.Type = v1.ServiceTypeNodePort
	case "lb", "lb2": // lb2: a second address
		spec.Type = v1.ServiceTypeLoadBalancer
		ingress(fresh(key), nil)
	case "lbvip", "lbproxy": // says its ipMode
		spec.Type = v1.ServiceTypeLoadBalancer
		mode := map[string]v1.LoadBalancerIPMode{"lbvip": v1.LoadBalancerIPModeVIP, "lbproxy": v1.LoadBalancerIPModeProxy}[key]
		ingress(fresh(key), &mode)
	case "lbhost":
		spec.Type = v1.ServiceTypeLoadBalancer
		out.svc.Status.LoadBalancer.Ingress = append(out.svc.Status.LoadBalancer.Ingress, v1.LoadBalancerIngress{Hostname: "lb.example.org"})
	case "looped": // a second address, which Outside has
		ingress(b.net.Looped, nil)
	case "nonp":
		spec.AllocateLoadBalancerNodePorts = ptr(false)
	case "ext":
		addrs := out.targets["lb"] // ext=lb: the load balancer's
		if value == "" {
			addrs = fresh("ext")
		} else if other := b.made[value]; other != nil { // ext=NAME: that of another Service of the rule
			addrs = other.targets["ext"]
			out.targets["ext"] = addrs
		}
		spec.ExternalIPs = append(spec.ExternalIPs, texts(addrs)...)
	case "ranges":
		for _, name := range strings.Split(value, ",") {
			spec.LoadBalancerSourceRanges = append(spec.LoadBalancerSourceRanges, b.ranges(name)...)
		}
	default:
		return false
	}
	return true
}

// ranges returns the source ranges that a word stands for.
func (b *builder) ranges(name string) []string {
	exactly := func(addrs []netip.Addr) (out []string) {
		for _, a := range addrs {
			out = append(out, fmt.Sprintf("%s/%d", a, a.BitLen()))
		}
		return out
	}
	switch name {
	case "pods":
		return []string{b.net.Cluster[0].String(), b.net.Cluster[1].String()}
	case "node":
		return exactly(b.net.Node)
	case "primary":
		return exactly(b.net.primary())
	case "second": // of the node
		return exactly(b.net.second())
	case "outside4":
		return exactly(b.net.Sources[origins[out]])[:1]
	case "spaces":
		return []string{"  " + exactly(b.net.Sources[origins[out]])[0] + " ", "\t" + exactly(b.net.Sources[origins[out]])[1]}
	case "all4":
		return []string{"0.0.0.0/0"}
	case "all6":
		return []string{"::/0"}
	case "bogus":
		return []string{"300.0.0.0/8", "nonsense"}
	case "nobody":
		return []string{"240.0.0.0/24", "3ffe::/64"}
	}
	origin, second, _ := strings.Cut(name, "@")
	if second != "" {
		return exactly(b.net.Second[origins[origin]])
	}
	if origins[origin] == "" {
		panic("unknown range " + name)
	}
	return exactly(b.net.Sources[origins[origin]])
}

// numberPorts gives every port its NodePort, the same for TCP and UDP.
func (out *built) numberPorts() {
	spec := &out.svc.Spec
	has := spec.Type == v1.ServiceTypeNodePort || spec.Type == v1.ServiceTypeLoadBalancer &&
		(spec.AllocateLoadBalancerNodePorts == nil || *spec.AllocateLoadBalancerNodePorts)
	for i := range spec.Ports {
		if has {
			spec.Ports[i].NodePort = out.port + spec.Ports[i].Port - 80
		}
	}
}
