// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

func TestPoolsFollowReadinessPolicyAndTopology(t *testing.T) {
	local := []func(*v1.Service){nodePort(30080), externalLocal}
	for _, tc := range []struct {
		name           string
		edit           []func(*v1.Service)
		endpoints      []string
		cluster, local string
	}{
		{"no endpoints", nil, nil, "reject", "reject"},
		{"ready", nil, []string{"10.0.0.2", "10.0.0.1 remote"}, "1 2!", "reject"},
		{"not ready is left out", nil, []string{"10.0.0.1", "10.0.0.2 notready"}, "1!", "reject"},
		{"none ready, none terminating", nil, []string{"10.0.0.1 notready"}, "reject", "reject"},
		{"terminating is left out", nil, []string{"10.0.0.1", "10.0.0.2 terminating"}, "1!", "reject"},
		{"none ready: serving and terminating", nil, []string{"10.0.0.1 notready", "10.0.0.2 terminating"}, "2!", "reject"},
		{"none ready: serving alone is not enough", nil, []string{"10.0.0.1 notready serving"}, "reject", "reject"},
		{"none ready: terminating alone is not enough", nil, []string{"10.0.0.1 notready terminating"}, "reject", "reject"},
		{"unused local pool stays empty", []func(*v1.Service){nodePort(30080)}, []string{"10.0.0.1"}, "1!", "reject"},

		{"external local", local, []string{"10.0.0.1", "10.0.0.2 remote"}, "1! 2", "1!"},
		{"external local, none here", local, []string{"10.0.0.2 remote"}, "2", "drop"},
		{"external local, none at all", local, nil, "reject", "reject"},
		{"external local, none usable", local, []string{"10.0.0.2 remote notready"}, "reject", "reject"},
		{"external local falls back by itself", local, []string{"10.0.0.1 terminating", "10.0.0.2 remote"}, "2", "1!"},
		{"cluster and local fall back", local, []string{"10.0.0.1 terminating", "10.0.0.2 remote terminating"}, "1! 2", "1!"},
		{"only remote falls back", local, []string{"10.0.0.2 remote terminating"}, "2", "drop"},
		{"local ready beats local terminating", local, []string{"10.0.0.1 terminating", "10.0.0.2"}, "2!", "2!"},

		{"internal local only", []func(*v1.Service){internalLocal}, []string{"10.0.0.1", "10.0.0.2 remote"}, "reject", "1!"},
		{"internal local, none here", []func(*v1.Service){internalLocal}, []string{"10.0.0.2 remote"}, "reject", "drop"},
		{"internal local, none at all", []func(*v1.Service){internalLocal}, nil, "reject", "reject"},
		{"internal local with node port", []func(*v1.Service){internalLocal, nodePort(30080)}, []string{"10.0.0.1", "10.0.0.2 remote"}, "1! 2", "1!"},

		{"same zone", nil, []string{"10.0.0.1 zone=zone-a", "10.0.0.2 zone=zone-b", "10.0.0.3 zone=zone-a zone=zone-b"}, "1! 3!", "reject"},
		{"a ready one without zone hint", nil, []string{"10.0.0.1 zone=zone-a", "10.0.0.2"}, "1! 2!", "reject"},
		{"one that is not ready needs no hint", nil, []string{"10.0.0.1 zone=zone-a", "10.0.0.2 notready", "10.0.0.3 zone=zone-b"}, "1!", "reject"},
		{"no hint for this zone", nil, []string{"10.0.0.1 zone=zone-b", "10.0.0.2 zone=zone-c"}, "1! 2!", "reject"},
		{"this zone's hint is on one that is not ready", nil, []string{"10.0.0.1 zone=zone-b", "10.0.0.2 notready zone=zone-a"}, "1!", "reject"},
		{"same node", nil, []string{"10.0.0.1 here=node-a", "10.0.0.2 here=node-b"}, "1!", "reject"},
		{"same node beats same zone", nil, []string{"10.0.0.1 here=node-a zone=zone-a", "10.0.0.2 here=node-b zone=zone-a"}, "1!", "reject"},
		{"no hint for this node: zone", nil, []string{"10.0.0.1 here=node-c zone=zone-a", "10.0.0.2 here=node-b zone=zone-b"}, "1!", "reject"},
		{"a ready one without node hint: zone", nil, []string{"10.0.0.1 here=node-a zone=zone-b", "10.0.0.2 zone=zone-a"}, "2!", "reject"},
		{"hints do not matter when none is ready", nil, []string{"10.0.0.1 terminating zone=zone-a", "10.0.0.2 terminating zone=zone-b"}, "1! 2!", "reject"},
		{"hints do not matter for local", local, []string{"10.0.0.1 zone=zone-b", "10.0.0.2 remote zone=zone-a"}, "2", "1!"},

		{"twice: not terminating wins", nil, []string{"10.0.0.1 terminating", "10.0.0.1 remote"}, "1", "reject"},
		{"twice: not terminating wins, other order", nil, []string{"10.0.0.1 remote", "10.0.0.1 terminating"}, "1", "reject"},
		{"twice: ready wins over not ready", nil, []string{"10.0.0.1 remote notready", "10.0.0.1"}, "1!", "reject"},
		{"only the first address counts", nil, []string{"10.0.0.1"}, "1!", "reject"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testSlice("web", "web-1", tc.endpoints...)
			for i := range in.Endpoints {
				in.Endpoints[i].Addresses = append(in.Endpoints[i].Addresses, "10.9.9.9")
			}
			got, ps := Resolve(testService("web", tc.edit...), []*discovery.EndpointSlice{in}, lb.Node{Zone: thisZone}, testOptions())
			if len(got) != 1 || len(ps) != 0 {
				t.Fatalf("endpoints %q: got %d services, problems %v; want 1, none", tc.endpoints, len(got), ps)
			}
			if c, l := show(got[0].Cluster), show(got[0].Local); c != tc.cluster || l != tc.local {
				t.Errorf("endpoints %q: cluster %q, local %q; want %q, %q", tc.endpoints, c, l, tc.cluster, tc.local)
			}
		})
	}
}

func TestDuplicateAddressDoesNotDependOnSliceOrder(t *testing.T) {
	a := testSlice("web", "web-a", "10.0.0.1 terminating", "10.0.0.2 remote")
	b := testSlice("web", "web-b", "10.0.0.1 remote", "10.0.0.2")
	ab, _ := Resolve(testService("web"), []*discovery.EndpointSlice{a, b}, lb.Node{}, testOptions())
	ba, _ := Resolve(testService("web"), []*discovery.EndpointSlice{b, a}, lb.Node{}, testOptions())
	if d := cmp.Diff(ab, ba, cmp.Comparer(equalServices)); d != "" {
		t.Errorf("order of slices matters: %s", d)
	}
	if got, want := show(ab[0].Cluster), "1 2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestZoneNeedsALabel(t *testing.T) {
	in := testSlice("web", "web-1", "10.0.0.1 zone=", "10.0.0.2 zone=zone-b", "10.0.0.3 zone=zone-b")
	got, _ := Resolve(testService("web"), []*discovery.EndpointSlice{in}, lb.Node{}, testOptions())
	if bs := got[0].Cluster.Backends; show(got[0].Cluster) != "1! 2! 3!" || cap(bs) != len(bs) {
		t.Errorf("got %q, room for %d; want all", show(got[0].Cluster), cap(bs))
	}
}

func TestPublishNotReadyAddressesIsNothingSpecial(t *testing.T) {
	svc := testService("web", func(s *v1.Service) { s.Spec.PublishNotReadyAddresses = true })
	in := testSlice("web", "web-1", "10.0.0.1", "10.0.0.2 notready")
	in.Endpoints[0].Conditions.Terminating = ptr(true) // the controller says ready all the same
	got, _ := Resolve(svc, []*discovery.EndpointSlice{in}, lb.Node{}, testOptions())
	if s := show(got[0].Cluster); s != "1!" {
		t.Errorf("got %q, want 1!", s)
	}
}

func TestFrontendsOfEveryTypeAndPolicy(t *testing.T) {
	external := func(ips ...string) func(*v1.Service) {
		return func(s *v1.Service) { s.Spec.ExternalIPs = ips }
	}
	for _, tc := range []struct {
		name string
		edit []func(*v1.Service)
		opts func(*Options)
		want []string
	}{
		{"cluster IP", nil, nil, []string{"ClusterIP 10.96.0.1:80/TCP cluster/cluster off"}},
		{"cluster IP, masquerade all", nil, func(o *Options) { o.MasqueradeAll = true },
			[]string{"ClusterIP 10.96.0.1:80/TCP cluster/cluster always"}},
		{"internal local", []func(*v1.Service){internalLocal}, nil, []string{"ClusterIP 10.96.0.1:80/TCP local/local off"}},
		{"external local does not concern cluster IPs", []func(*v1.Service){externalLocal}, nil,
			[]string{"ClusterIP 10.96.0.1:80/TCP cluster/cluster off"}},
		{"node port", []func(*v1.Service){nodePort(30080)}, nil, []string{
			"NodePort 0.0.0.0:30080/TCP cluster/cluster always",
			"ClusterIP 10.96.0.1:80/TCP cluster/cluster off"}},
		{"node port, external local", []func(*v1.Service){nodePort(30080), externalLocal}, nil, []string{
			"NodePort 0.0.0.0:30080/TCP cluster/local never",
			"ClusterIP 10.96.0.1:80/TCP cluster/cluster off"}},
		{"load balancer without node ports", []func(*v1.Service){balancer("203.0.113.1", "203.0.113.2")}, nil, []string{
			"ClusterIP 10.96.0.1:80/TCP cluster/cluster off",
			"LoadBalancer 203.0.113.1:80/TCP cluster/cluster always",
			"LoadBalancer 203.0.113.2:80/TCP cluster/cluster always"}},
		{"load balancer, both local", []func(*v1.Service){balancer("203.0.113.1"), externalLocal, internalLocal}, nil, []string{
			"ClusterIP 10.96.0.1:80/TCP local/local off",
			"LoadBalancer 203.0.113.1:80/TCP cluster/local never"}},
		{"load balancer modes", []func(*v1.Service){balancer("203.0.113.1", "203.0.113.2", "203.0.113.3", ""), func(s *v1.Service) {
			s.Status.LoadBalancer.Ingress[1].IPMode = ptr(v1.LoadBalancerIPModeProxy)
			s.Status.LoadBalancer.Ingress[2].IPMode = ptr(v1.LoadBalancerIPModeVIP)
			s.Status.LoadBalancer.Ingress[3].Hostname = "lb.example"
		}}, nil, []string{
			"ClusterIP 10.96.0.1:80/TCP cluster/cluster off",
			"LoadBalancer 203.0.113.1:80/TCP cluster/cluster always",
			"LoadBalancer 203.0.113.3:80/TCP cluster/cluster always"}},
		{"external IPs", []func(*v1.Service){external("198.51.100.7", " ")}, nil, []string{
			"ClusterIP 10.96.0.1:80/TCP cluster/cluster off",
			"ExternalIP 198.51.100.7:80/TCP cluster/cluster always"}},
		{"external IPs, external local", []func(*v1.Service){external("198.51.100.7"), externalLocal}, nil, []string{
			"ClusterIP 10.96.0.1:80/TCP cluster/cluster off",
			"ExternalIP 198.51.100.7:80/TCP cluster/local never"}},
		{"external IP that is the balancer's too", []func(*v1.Service){external("203.0.113.1"), balancer("203.0.113.1")}, nil, []string{
			"ClusterIP 10.96.0.1:80/TCP cluster/cluster off",
			"LoadBalancer 203.0.113.1:80/TCP cluster/cluster always"}},
		{"dual stack", []func(*v1.Service){dualStack, nodePort(30080)}, nil, []string{
			"NodePort 0.0.0.0:30080/TCP cluster/cluster always",
			"ClusterIP 10.96.0.1:80/TCP cluster/cluster off",
			"NodePort [::]:30080/TCP cluster/cluster always",
			"ClusterIP [fd00::1]:80/TCP cluster/cluster off"}},
		{"IPv6 alone", []func(*v1.Service){clusterIP("fd00::1"), func(s *v1.Service) {
			s.Spec.IPFamilies = nil
		}}, nil, []string{"ClusterIP [fd00::1]:80/TCP cluster/cluster off"}},
		{"cluster IP without the list", []func(*v1.Service){func(s *v1.Service) { s.Spec.ClusterIPs, s.Spec.IPFamilies = nil, nil }}, nil,
			[]string{"ClusterIP 10.96.0.1:80/TCP cluster/cluster off"}},
		{"leading zeros", []func(*v1.Service){clusterIP("010.096.000.001")}, nil,
			[]string{"ClusterIP 10.96.0.1:80/TCP cluster/cluster off"}},
		{"one number, two protocols", []func(*v1.Service){func(s *v1.Service) {
			s.Spec.Ports = append(s.Spec.Ports, v1.ServicePort{Name: "udp", Protocol: v1.ProtocolUDP, Port: 80})
		}}, nil, []string{
			"ClusterIP 10.96.0.1:80/TCP cluster/cluster off",
			"ClusterIP 10.96.0.1:80/UDP cluster/cluster off"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := testOptions()
			if tc.opts != nil {
				tc.opts(&o)
			}
			got, ps := Resolve(testService("web", tc.edit...), nil, lb.Node{}, o)
			if d := cmp.Diff(tc.want, showFrontends(got)); d != "" || len(ps) > 0 {
				t.Errorf("problems %v; -want +got:\n%s", ps, d)
			}
		})
	}
}

func TestServicesNobodyServes(t *testing.T) {
	for _, tc := range []struct {
		name    string
		edit    func(*v1.Service)
		reasons []string
	}{
		{"headless", clusterIP(v1.ClusterIPNone), nil},
		{"external name with an address", func(s *v1.Service) { s.Spec.Type = v1.ServiceTypeExternalName }, nil},
		{"another proxy's", func(s *v1.Service) { s.Labels = map[string]string{labelProxyName: "x"} }, nil},
		{"no cluster IP", func(s *v1.Service) { s.Spec.ClusterIP = "" }, []string{ReasonNoClusterIP}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ps := Resolve(testService("web", tc.edit), []*discovery.EndpointSlice{testSlice("web", "a", "10.0.0.1")}, lb.Node{}, testOptions())
			if len(got) != 0 || !slices.Equal(reasons(ps), tc.reasons) {
				t.Errorf("got %d services, problems %v; want none, %v", len(got), ps, tc.reasons)
			}
		})
	}
}

func TestMalformedFieldsCostOnlyThemselves(t *testing.T) {
	const cluster = "ClusterIP 10.96.0.1:80/TCP cluster/cluster off"
	addPort := func(p v1.ServicePort) func(*v1.Service) {
		return func(s *v1.Service) { s.Spec.Ports = append(s.Spec.Ports, p) }
	}
	spec := func(f func(*v1.ServiceSpec)) func(*v1.Service) { return func(s *v1.Service) { f(&s.Spec) } }
	for _, tc := range []struct {
		name    string
		edit    func(*v1.Service)
		problem string
		want    []string
	}{
		{"cluster IP", spec(func(s *v1.ServiceSpec) { s.ClusterIPs, s.Ports[0].NodePort = []string{"x"}, 30080 }),
			`spec.clusterIPs[0]: "x" is not an IP address`, []string{"NodePort 0.0.0.0:30080/TCP cluster/cluster always"}},
		{"unspecified cluster IP", clusterIP("0.0.0.0"), "spec.clusterIPs[0]: 0.0.0.0 cannot be the address of a Service", nil},
		{"address with zone", clusterIP("fe80::1%eth0"), `spec.clusterIPs[0]: "fe80::1%eth0" is not an IP address`, nil},
		{"cluster IP of another family", clusterIP("fd00::1"),
			"spec.clusterIPs[0]: fd00::1 is not of the family that spec.ipFamilies has here", nil},
		{"two cluster IPs of one family", spec(func(s *v1.ServiceSpec) { s.ClusterIPs, s.IPFamilies = []string{"10.96.0.1", "10.96.0.2"}, nil }),
			"spec.clusterIPs[1]: 10.96.0.2 is a second address of family IPv4", []string{cluster}},
		{"family without cluster IP", spec(func(s *v1.ServiceSpec) { s.IPFamilies = append(s.IPFamilies, v1.IPv6Protocol) }),
			"spec.ipFamilies[1]: IPv6 has no cluster IP: it is not served", []string{cluster}},
		{"unknown family", spec(func(s *v1.ServiceSpec) { s.IPFamilies = append(s.IPFamilies, "IPX") }),
			`spec.ipFamilies[1]: "IPX": want IPv4 or IPv6`, []string{cluster}},
		{"port 0", addPort(v1.ServicePort{Name: "b"}), "spec.ports[1].port: 0 is outside 1..65535", []string{cluster}},
		{"port too big", addPort(v1.ServicePort{Name: "b", Port: 65536}), "spec.ports[1].port: 65536 is outside 1..65535", []string{cluster}},
		{"negative port", addPort(v1.ServicePort{Name: "b", Port: -1}), "spec.ports[1].port: -1 is outside 1..65535", []string{cluster}},
		{"unknown protocol", addPort(v1.ServicePort{Name: "b", Port: 81, Protocol: "ICMP"}),
			`spec.ports[1].protocol: protocol "ICMP": want TCP, UDP or SCTP`, []string{cluster}},
		{"SCTP", addPort(v1.ServicePort{Name: "b", Port: 81, Protocol: v1.ProtocolSCTP}),
			"spec.ports[1].protocol: SCTP is not served by the eBPF dataplane", []string{cluster}},
		{"port name twice", addPort(v1.ServicePort{Name: "http", Port: 81}),
			`spec.ports[1].name: "http"/TCP is the name of an earlier port`, []string{cluster}},
		{"port name that is none", addPort(v1.ServicePort{Name: "a/b", Port: 81}), `spec.ports[1].name: "a/b" is not a port name`, []string{cluster}},
		{"port number twice", addPort(v1.ServicePort{Name: "b", Port: 80}), "spec.ports[1]: 10.96.0.1:80/TCP is taken by spec.ports[0]", []string{cluster}},
		{"node port too big", nodePort(70000), "spec.ports[0].nodePort: 70000 is outside 1..65535", []string{cluster}},
		{"node port missing", nodePort(0), "spec.ports[0].nodePort: is not set, and the type is NodePort", []string{cluster}},
		{"external IP", spec(func(s *v1.ServiceSpec) { s.ExternalIPs = []string{"x"} }),
			`spec.externalIPs[0]: "x" is not an IP address`, []string{cluster}},
		{"external IP is loopback", spec(func(s *v1.ServiceSpec) { s.ExternalIPs = []string{"127.0.0.1"} }),
			"spec.externalIPs[0]: 127.0.0.1 cannot be the address of a Service", []string{cluster}},
		{"external IP of another family", spec(func(s *v1.ServiceSpec) { s.ExternalIPs = []string{"2001:db8::1"} }),
			"spec.externalIPs[0]: 2001:db8::1: the Service has no family IPv6", []string{cluster}},
		{"load balancer IP", balancer("x"), `status.loadBalancer.ingress[0].ip: "x" is not an IP address`, []string{cluster}},
		{"internal policy", spec(func(s *v1.ServiceSpec) { s.InternalTrafficPolicy = ptr(v1.ServiceInternalTrafficPolicy("Nearby")) }),
			`spec.internalTrafficPolicy: "Nearby" is taken as Cluster`, []string{cluster}},
		{"external policy", spec(func(s *v1.ServiceSpec) { s.ExternalTrafficPolicy = "Nearby" }),
			`spec.externalTrafficPolicy: "Nearby" is taken as Cluster`, []string{cluster}},
		{"session affinity", spec(func(s *v1.ServiceSpec) { s.SessionAffinity = "Cookie" }),
			`spec.sessionAffinity: "Cookie" is taken as None`, []string{cluster}},
		{"algorithm", func(s *v1.Service) { s.Annotations = map[string]string{annotationAlgorithm: "magic"} },
			`metadata.annotations[lbproxy.io/algorithm]: unknown algorithm "magic"`, []string{cluster}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ps := Resolve(testService("web", tc.edit), nil, lb.Node{}, testOptions())
			if len(ps) != 1 || ps[0].Message() != tc.problem || ps[0].Error() != "Service default/web: "+tc.problem {
				t.Errorf("got problems %v\nwant %q", ps, tc.problem)
			}
			if d := cmp.Diff(tc.want, showFrontends(got)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestExternalIPsCanBeDenied(t *testing.T) {
	o := testOptions()
	o.DenyExternalIPs = true
	got, ps := Resolve(testService("web", func(s *v1.Service) { s.Spec.ExternalIPs = []string{"198.51.100.7"} }), nil, lb.Node{}, o)
	if len(showFrontends(got)) != 1 || !slices.Equal(reasons(ps), []string{ReasonExternalIPsDenied}) {
		t.Errorf("got %v, problems %v", showFrontends(got), ps)
	}
}

func TestSlicesMatchByPortNameProtocolAndFamily(t *testing.T) {
	svc := testService("web", dualStack, func(s *v1.Service) {
		s.Spec.Ports = []v1.ServicePort{
			{Name: "http", Port: 80, Protocol: v1.ProtocolTCP},
			{Name: "dns", Port: 53, Protocol: v1.ProtocolUDP},
		}
	})
	six := testSlice("web", "web-6", "2001:db8::6")
	six.AddressType = discovery.AddressTypeIPv6
	four := testSlice("web", "web-4", "10.0.0.4")
	four.Ports = append(four.Ports,
		discovery.EndpointPort{Name: ptr("dns"), Protocol: ptr(v1.ProtocolUDP), Port: ptr(int32(5353))},
		discovery.EndpointPort{Name: ptr("dns"), Protocol: ptr(v1.ProtocolTCP), Port: ptr(int32(5354))},
		discovery.EndpointPort{Name: ptr("other"), Port: ptr(int32(9))})
	other := testSlice("other", "other-4", "10.0.0.99")
	headless := testSlice("web", "web-h", "10.0.0.98")
	headless.Labels[labelHeadless] = ""
	elsewhere := testSlice("web", "web-e", "10.0.0.97")
	elsewhere.Namespace = "elsewhere"
	got, ps := Resolve(svc, []*discovery.EndpointSlice{six, four, other, headless, elsewhere}, lb.Node{}, testOptions())
	var lines []string
	for _, s := range got {
		for _, b := range s.Cluster.Backends {
			lines = append(lines, fmt.Sprintf("%s %s %d", s.Name, b.Addr, b.Weight))
		}
	}
	want := []string{
		"default/web:dns/UDP/IPv4 10.0.0.4:5353 100",
		"default/web:http/TCP/IPv4 10.0.0.4:8080 100",
		"default/web:http/TCP/IPv6 [2001:db8::6]:8080 100",
	}
	if d := cmp.Diff(want, lines); d != "" || len(ps) > 0 {
		t.Errorf("problems %v; -want +got:\n%s", ps, d)
	}
	if len(got) != 4 {
		t.Errorf("got %d services, want 4: one for each port and family", len(got))
	}
}

func TestMalformedSlices(t *testing.T) {
	for _, tc := range []struct {
		name    string
		edit    func(*discovery.EndpointSlice)
		problem string
		want    string
	}{
		{"address", func(s *discovery.EndpointSlice) { s.Endpoints[0].Addresses[0] = "x" }, `endpoints[0].addresses[0]: "x" is not an IP address`, "2!"},
		{"loopback", func(s *discovery.EndpointSlice) { s.Endpoints[0].Addresses[0] = "127.0.0.1" },
			"endpoints[0].addresses[0]: 127.0.0.1 cannot be the address of an endpoint", "2!"},
		{"family", func(s *discovery.EndpointSlice) { s.Endpoints[0].Addresses[0] = "2001:db8::1" },
			"endpoints[0].addresses[0]: 2001:db8::1 is not IPv4, the slice's address type", "2!"},
		{"no address", func(s *discovery.EndpointSlice) { s.Endpoints[0].Addresses = nil }, "endpoints[0].addresses: is empty", "2!"},
		{"no port name", func(s *discovery.EndpointSlice) { s.Ports[0].Name = nil }, "ports[0].name: is not set", "reject"},
		{"no port", func(s *discovery.EndpointSlice) { s.Ports[0].Port = nil }, "ports[0].port: is not set: all ports is not supported", "reject"},
		{"port 0", func(s *discovery.EndpointSlice) { s.Ports[0].Port = ptr(int32(0)) }, "ports[0].port: 0 is outside 1..65535", "reject"},
		{"protocol", func(s *discovery.EndpointSlice) { s.Ports[0].Protocol = ptr(v1.Protocol("X")) },
			`ports[0].protocol: protocol "X": want TCP, UDP or SCTP`, "reject"},
		{"address type", func(s *discovery.EndpointSlice) { s.AddressType = discovery.AddressTypeFQDN },
			`addressType: "FQDN": want IPv4 or IPv6`, "reject"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testSlice("web", "web-1", "10.0.0.1", "10.0.0.2")
			tc.edit(in)
			got, ps := Resolve(testService("web"), []*discovery.EndpointSlice{in}, lb.Node{}, testOptions())
			if len(ps) != 1 || ps[0].Message() != "EndpointSlice web-1: "+tc.problem {
				t.Errorf("got problems %v\nwant %q", ps, tc.problem)
			}
			if s := show(got[0].Cluster); s != tc.want {
				t.Errorf("got %q, want %q", s, tc.want)
			}
		})
	}
}

func TestManyProblemsAreSummedUp(t *testing.T) {
	in := testSlice("web", "web-1")
	for range 1000 {
		in.Endpoints = append(in.Endpoints, discovery.Endpoint{})
	}
	_, ps := Resolve(testService("web"), []*discovery.EndpointSlice{in}, lb.Node{}, testOptions())
	if len(ps) != maxProblems+1 || ps[maxProblems].Reason != ReasonTooMany {
		t.Errorf("got %d problems, the last %v; want %d and %s", len(ps), ps[len(ps)-1], maxProblems+1, ReasonTooMany)
	}
}

func TestNoNodeNameMeansNothingIsLocal(t *testing.T) {
	in := testSlice("web", "web-1", "10.0.0.1")
	in.Endpoints[0].NodeName = ptr("")
	got, _ := Resolve(testService("web"), []*discovery.EndpointSlice{in}, lb.Node{}, Options{})
	if s := show(got[0].Cluster); s != "1" {
		t.Errorf("got %q, want 1, not local", s)
	}
}

func TestResultIsSorted(t *testing.T) {
	svc := testService("web", dualStack, nodePort(30080), balancer("203.0.113.1", "2.0.0.1"), func(s *v1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, v1.ServicePort{Name: "a", Port: 1})
	})
	in := testSlice("web", "web-1", "10.0.0.9", "10.0.0.1", "9.0.0.1")
	got, _ := Resolve(svc, []*discovery.EndpointSlice{in}, lb.Node{}, testOptions())
	if !slices.IsSortedFunc(got, func(a, b *lb.Service) int { return a.Name.Compare(b.Name) }) {
		t.Error("services are not sorted")
	}
	for _, s := range got {
		if !slices.IsSortedFunc(s.Frontends, lb.Frontend.Compare) || !slices.IsSortedFunc(s.Cluster.Backends, lb.Backend.Compare) {
			t.Errorf("%s is not sorted: %v %v", s.Name, s.Frontends, s.Cluster.Backends)
		}
	}
}

func TestProblemIsAnError(t *testing.T) {
	cause := errors.New("cause")
	p := Problem{Kind: KindManifest, Object: lb.Object{Name: "a.yaml"}, Field: "document 1", Reason: ReasonMalformed, Err: cause}
	if !errors.Is(p, cause) || p.Error() != "Manifest a.yaml: document 1: cause" {
		t.Errorf("got %q", p.Error())
	}
}
