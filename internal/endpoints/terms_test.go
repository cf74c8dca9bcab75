// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func withSpec(f func(*v1.ServiceSpec)) func(*v1.Service) {
	return func(s *v1.Service) { f(&s.Spec) }
}

// sourceRanges gives a Service the ranges that text has, separated by commas.
func sourceRanges(text string) func(*v1.Service) {
	return withSpec(func(s *v1.ServiceSpec) { s.LoadBalancerSourceRanges = strings.Split(text, ",") })
}

func healthPort(n int32) func(*v1.Service) {
	return withSpec(func(s *v1.ServiceSpec) { s.HealthCheckNodePort = n })
}

func TestSessionAffinity(t *testing.T) {
	config := func(seconds int32) *v1.SessionAffinityConfig {
		return &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	invalid := func(n int) string {
		return fmt.Sprintf("spec.sessionAffinityConfig.clientIP.timeoutSeconds: %d is outside 1..86400: it is taken as 10800", n)
	}
	for _, tc := range []struct {
		name    string
		kind    v1.ServiceAffinity
		config  *v1.SessionAffinityConfig
		want    time.Duration
		problem string
	}{
		{"not said", "", nil, 0, ""},
		{"none", v1.ServiceAffinityNone, config(60), 0, ""},
		{"default", v1.ServiceAffinityClientIP, nil, 3 * time.Hour, ""},
		{"no client IP", v1.ServiceAffinityClientIP, &v1.SessionAffinityConfig{}, 3 * time.Hour, ""},
		{"no seconds", v1.ServiceAffinityClientIP, &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{}}, 3 * time.Hour, ""},
		{"shortest", v1.ServiceAffinityClientIP, config(1), time.Second, ""},
		{"longest", v1.ServiceAffinityClientIP, config(86400), 24 * time.Hour, ""},
		{"too short", v1.ServiceAffinityClientIP, config(0), 3 * time.Hour, invalid(0)},
		{"negative", v1.ServiceAffinityClientIP, config(-1), 3 * time.Hour, invalid(-1)},
		{"too long", v1.ServiceAffinityClientIP, config(86401), 3 * time.Hour, invalid(86401)},
	} {
		svc := testService("web", dualStack, withSpec(func(s *v1.ServiceSpec) {
			s.SessionAffinity, s.SessionAffinityConfig = tc.kind, tc.config
			s.Ports = append(s.Ports, v1.ServicePort{Name: "b", Port: 81})
		}))
		got, ps := Resolve(svc, nil, lb.Node{}, testOptions())
		if len(got) != 4 {
			t.Fatalf("%s: %d Services, want 4", tc.name, len(got))
		}
		for _, s := range got {
			if s.Terms.Affinity != tc.want {
				t.Errorf("%s: %s has affinity %s, want %s", tc.name, s.Name, s.Terms.Affinity, tc.want)
			}
		}
		var messages []string
		for _, p := range ps {
			messages = append(messages, p.Message())
		}
		if strings.Join(messages, "; ") != tc.problem {
			t.Errorf("%s: problems %q, want %q", tc.name, messages, tc.problem)
		}
	}
}

// showRanges writes the frontends that are ranged, and who may use them.
func showRanges(svcs []*lb.Service) string {
	var words []string
	for _, s := range svcs {
		for _, f := range s.Frontends {
			if f.Ranged {
				words = append(words, fmt.Sprintf("%s %s", f.Type, f.Addr.Addr()))
			}
		}
		for _, p := range s.Terms.SourceRanges {
			words = append(words, p.String())
		}
	}
	return strings.Join(words, " ")
}

func TestSourceRanges(t *testing.T) {
	const four, six = "LoadBalancer 203.0.113.1 ", "LoadBalancer 2001:db8::1 "
	for _, tc := range []struct {
		name, ranges, want string
		problems           []string
	}{
		{"one", "192.0.2.0/24,2001:db8:1::/48", four + "192.0.2.0/24 " + six + "2001:db8:1::/48", nil},
		{"white space", " 192.0.2.0/24\t,  ::/0", four + "192.0.2.0/24", nil},
		{"masked, sorted, once", "192.0.2.77/24,10.0.0.0/8,192.0.2.0/24,192.0.2.0/25,::/0", four + "10.0.0.0/8 192.0.2.0/24 192.0.2.0/25", nil},
		{"leading zeros", "010.000.1.0/24,::/0", four + "10.0.1.0/24", nil},
		{"all of a family", "0.0.0.0/0,2001:db8:1::/48", six + "2001:db8:1::/48", nil},
		{"all of one family beside others", "10.0.0.0/8,0.0.0.0/0,::/0", "", nil},
		{"all, not masked", "10.1.2.3/0,::1/0", "", nil},
		{"none of a family", "192.0.2.0/24", four + "192.0.2.0/24", nil}, // as kube-proxy: open to all
		{"none of a family, and one that cannot be read", "192.0.2.0/24,bogus", four + "192.0.2.0/24 " + strings.TrimSpace(six), []string{ReasonInvalidRange}},
		{"v4-mapped", "::ffff:192.0.2.0/120,::/0", four + "192.0.2.0/24", nil},
		{"single addresses", "192.0.2.1/32,2001:db8::7/128", four + "192.0.2.1/32 " + six + "2001:db8::7/128", nil},
		{
			"invalid ones match nothing", "bogus,192.0.2.0/33,192.0.2.0,192.0.2.0/-1,192.0.2.0/+8,2001:db8::/129,/8,1.2.3/8,::ffff:192.0.2.0/90,fe80::1%eth0/64,192.0.2.0/24/8",
			four + strings.TrimSpace(six), slices.Repeat([]string{ReasonInvalidRange}, 11),
		},
		{"one invalid one", "bogus,192.0.2.0/24,::/0", four + "192.0.2.0/24", []string{ReasonInvalidRange}},
		{"an empty one", ",::/0", strings.TrimSpace(four), []string{ReasonInvalidRange}},
	} {
		svc := testService("web", dualStack, nodePort(30080), balancer("203.0.113.1", "2001:db8::1"), sourceRanges(tc.ranges),
			withSpec(func(s *v1.ServiceSpec) { s.ExternalIPs = []string{"203.0.113.1", "203.0.113.9"} }))
		got, ps := Resolve(svc, nil, lb.Node{Addrs: addrs("172.30.0.11", "2001:db8:ffff::11")}, testOptions())
		if s := showRanges(got); s != tc.want || !slices.Equal(reasons(ps), tc.problems) {
			t.Errorf("%s: %q: ranged %q, problems %v\nwant %q, %v", tc.name, tc.ranges, s, ps, tc.want, tc.problems)
		}
		if n := len(showFrontends(got)); n != 7 { // that are both cluster IPs, node ports, LB IPs, and the other external IP
			t.Errorf("%s: %d frontends, want 7: %q", tc.name, n, showFrontends(got))
		}
	}
}

func TestSourceRangesNeedALoadBalancerAddress(t *testing.T) {
	got, ps := Resolve(testService("web", nodePort(30080), sourceRanges("192.0.2.0/24")), nil, lb.Node{}, testOptions())
	if s := showRanges(got); s != "" || len(ps) > 0 {
		t.Errorf("ranged %q, problems %v; want none", s, ps)
	}
}

// TestSourceRangesThatContainThisNode let in packets that the node sends to the VIP
// with the VIP as the source.
func TestSourceRangesThatContainThisNode(t *testing.T) {
	for _, tc := range []struct {
		node, ranges, want string
	}{
		{"172.30.0.11", "172.30.0.0/16,192.0.2.0/24,::/0", "172.30.0.0/16 192.0.2.0/24 203.0.113.1/32 203.0.113.2/32"},
		{"172.30.0.11", "172.31.0.0/16,::/0", "172.31.0.0/16"},
		{"10.1.1.1 172.30.0.11", "172.30.0.11/32,::/0", "172.30.0.11/32 203.0.113.1/32 203.0.113.2/32"},
		{"172.30.0.11", "172.30.0.0/16,2001:db8:1::/48", "172.30.0.0/16 203.0.113.1/32 203.0.113.2/32 2001:db8:1::/48"},
		{"2001:db8:1::11", "172.30.0.0/16,2001:db8:1::/48", "172.30.0.0/16 2001:db8::1/128 2001:db8:1::/48"},
	} {
		svc := testService("web", dualStack, balancer("203.0.113.2", "203.0.113.1", "2001:db8::1"), sourceRanges(tc.ranges),
			withSpec(func(s *v1.ServiceSpec) { s.ExternalIPs = []string{"203.0.113.9"} }))
		got, _ := Resolve(svc, nil, lb.Node{Addrs: addrs(strings.Fields(tc.node)...)}, testOptions())
		var words []string
		for _, s := range got {
			for _, p := range s.Terms.SourceRanges {
				words = append(words, p.String())
			}
		}
		if s := strings.Join(words, " "); s != tc.want {
			t.Errorf("node %s, ranges %s: got %q, want %q", tc.node, tc.ranges, s, tc.want)
		}
	}
}

func TestNodeAddressesResolveRangedServicesAgain(t *testing.T) {
	s, _ := newStore(t)
	s.UpsertService(testService("open", clusterIP("10.96.0.2"), balancer("203.0.113.2")))
	s.UpsertService(testService("web", balancer("203.0.113.1"), sourceRanges("172.30.0.0/16")))
	s.Take()
	node := func(zone string, addrs ...string) *v1.Node {
		n := ownNode(zone)
		for _, a := range addrs {
			n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: a})
		}
		return n
	}
	const in, out = "LoadBalancer 203.0.113.1 172.30.0.0/16 203.0.113.1/32", "LoadBalancer 203.0.113.1 172.30.0.0/16"
	for _, step := range []struct {
		name    string
		do      func()
		touched int // Services that are resolved again
		want    string
	}{
		{"an address outside", func() { s.UpsertNode(node("", "10.0.0.1")) }, 1, out},
		{"one in the range", func() { s.UpsertNode(node("", "172.30.0.11", "10.0.0.1")) }, 1, in},
		{"the same", func() { s.UpsertNode(node("", "172.30.0.11", "10.0.0.1")) }, 0, in},
		{"another zone", func() { s.UpsertNode(node("z", "172.30.0.11", "10.0.0.1")) }, 2, in},
		{"the Node goes", func() { s.DeleteNode(thisNode) }, 0, in},
		{"it comes back without anything", func() { s.UpsertNode(ownNode("")) }, 0, in},
		{"with its zone", func() { s.UpsertNode(node("z")) }, 0, in},
		{"as it was", func() { s.UpsertNode(node("z", "172.30.0.11")) }, 0, in},
		{"the one in the range is its second", func() { s.UpsertNode(node("z", "10.0.0.1", "172.30.0.11")) }, 1, out},
		{"none", func() { s.UpsertNode(node("z")) }, 1, out},
	} {
		step.do()
		if len(s.dirty) != step.touched {
			t.Errorf("%s: %d Services are resolved again, want %d", step.name, len(s.dirty), step.touched)
		}
		s.Take()
		if got := showRanges(s.entries[object("web")].published); got != step.want {
			t.Errorf("%s: got %q, want %q", step.name, got, step.want)
		}
	}
}

// showDraining writes the last byte of each.
func showDraining(s *lb.Service) string {
	var words []string
	for _, a := range s.Terms.Draining {
		words = append(words, fmt.Sprint(a.Addr().As4()[3]))
	}
	return strings.Join(words, " ")
}

// TestDrainingEndpointsAreToldWhereItMatters has a port of each protocol.
func TestDrainingEndpointsAreToldWhereItMatters(t *testing.T) {
	svc := func(edit ...func(*v1.Service)) *v1.Service {
		return testService("web", append(edit, withSpec(func(s *v1.ServiceSpec) {
			s.Ports = []v1.ServicePort{{Name: "http", Port: 80}, {Name: "http", Port: 80, Protocol: v1.ProtocolUDP}}
		}))...)
	}
	sl := testSlice("web", "web-1", "10.0.0.1 zone=zone-a", "10.0.0.2 remote zone=zone-b", "10.0.0.3 terminating", "10.0.0.4 notready serving",
		"10.0.0.5 notready", "10.0.0.6 notready terminating", "10.0.0.7 remote terminating")
	sl.Ports = append(sl.Ports, discovery.EndpointPort{Name: ptr("http"), Protocol: ptr(v1.ProtocolUDP), Port: ptr(int32(8080))})
	for _, tc := range []struct {
		name, zone, tcp, udp string
		reset                bool
		edit                 []func(*v1.Service)
	}{
		{"UDP", "", "", "3 4 7", false, nil},
		{"of another zone", thisZone, "", "2 3 4 7", false, nil},
		{"in the local pool", "", "", "2 3 4 7", false, []func(*v1.Service){internalLocal}},
		{"reset", "", "3 4 7", "3 4 7", true, []func(*v1.Service){annotated("reset-on-removal", "true")}},
		{"no reset", "", "", "3 4 7", false, []func(*v1.Service){annotated("reset-on-removal", "false")}},
	} {
		got, ps := Resolve(svc(tc.edit...), []*discovery.EndpointSlice{sl}, lb.Node{Zone: tc.zone}, testOptions())
		if len(got) != 2 || len(ps) != 0 {
			t.Fatalf("%s: %d Services, problems %v; want 2, none", tc.name, len(got), ps)
		}
		tcp, udp := got[0], got[1]
		if a, b := showDraining(tcp), showDraining(udp); a != tc.tcp || b != tc.udp {
			t.Errorf("%s: draining TCP %q, UDP %q; want %q, %q", tc.name, a, b, tc.tcp, tc.udp)
		}
		if tcp.Terms.Reset != tc.reset || udp.Terms.Reset {
			t.Errorf("%s: reset TCP %t, UDP %t; want %t, false", tc.name, tcp.Terms.Reset, udp.Terms.Reset, tc.reset)
		}
	}
}

// TestDrainingAloneIsAChange has endpoints that go from draining to gone.
func TestDrainingAloneIsAChange(t *testing.T) {
	s, _ := newStore(t)
	s.UpsertService(testService("web", annotated("reset-on-removal", "true")))
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1", "10.0.0.2 terminating"))
	s.Take()
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1"))
	if cs, _ := s.Take(); len(cs) != 1 || showDraining(cs[0].Services[0]) != "" {
		t.Errorf("got %v, want one change without draining endpoints", cs)
	}
	s.UpsertService(testService("web", annotated("reset-on-removal", "maybe")))
	if cs, _ := s.Take(); len(cs) != 0 || !s.entries[object("web")].published[0].Terms.Reset {
		t.Errorf("an invalid value: got %v, want no change: it keeps what worked", cs)
	}
	s.UpsertService(testService("web"))
	if cs, _ := s.Take(); len(cs) != 1 || cs[0].Services[0].Terms.Reset {
		t.Errorf("without annotation: got %v, want one change", cs)
	}
}

func TestHealthCheckCountsLocalReadyEndpoints(t *testing.T) {
	six := testSlice("web", "web-6", "2001:db8::1", "2001:db8::2 remote")
	six.AddressType = discovery.AddressTypeIPv6
	second := testSlice("web", "web-2", "10.0.0.1", "10.0.0.3")
	second.Ports[0].Name = ptr("another") // the same Pods, by another port
	four := []string{"10.0.0.1", "10.0.0.2 remote", "10.0.0.4 terminating", "10.0.0.5 notready", "10.0.0.6 notready serving"}
	lbLocal := []func(*v1.Service){balancer("203.0.113.1"), externalLocal, healthPort(31000)}
	both, v4 := [2]bool{true, true}, [2]bool{true, false}
	for _, tc := range []struct {
		name string
		edit []func(*v1.Service)
		from []*discovery.EndpointSlice
		want lb.HealthCheck
	}{
		{"some", lbLocal, []*discovery.EndpointSlice{testSlice("web", "web-1", four...)}, lb.HealthCheck{Port: 31000, Served: v4, Ready: [2]int{1, 0}}},
		{"distinct, over all slices and ports", lbLocal, []*discovery.EndpointSlice{testSlice("web", "web-1", four...), second},
			lb.HealthCheck{Port: 31000, Served: v4, Ready: [2]int{2, 0}}},
		{"the other family is not counted where it is not served", lbLocal, []*discovery.EndpointSlice{six}, lb.HealthCheck{Port: 31000, Served: v4}},
		{"dual stack", append([]func(*v1.Service){dualStack}, lbLocal...), []*discovery.EndpointSlice{testSlice("web", "web-1", four...), six},
			lb.HealthCheck{Port: 31000, Served: both, Ready: [2]int{1, 1}}},
		{"none", lbLocal, nil, lb.HealthCheck{Port: 31000, Served: v4}},
		{"address in use again: the new one is not ready", lbLocal, []*discovery.EndpointSlice{
			testSlice("web", "web-1", "10.0.0.1 terminating"), testSlice("web", "web-2", "10.0.0.1 notready")}, lb.HealthCheck{Port: 31000, Served: v4}},
		{"address in use by another node, too: the first one wins", lbLocal, []*discovery.EndpointSlice{
			testSlice("web", "web-1", "10.0.0.1 remote"), testSlice("web", "web-2", "10.0.0.1", "10.0.0.2")},
			lb.HealthCheck{Port: 31000, Served: v4, Ready: [2]int{1, 0}}},
		{"policy Cluster", []func(*v1.Service){balancer("203.0.113.1"), healthPort(31000)}, nil, lb.HealthCheck{}},
		{"type NodePort", []func(*v1.Service){nodePort(30080), externalLocal, healthPort(31000)}, nil, lb.HealthCheck{}},
		{"no port", []func(*v1.Service){balancer("203.0.113.1"), externalLocal}, nil, lb.HealthCheck{}},
		{"before it has an address", []func(*v1.Service){balancer(), externalLocal, healthPort(31000)}, nil, lb.HealthCheck{Port: 31000, Served: v4}},
	} {
		s, _ := newStore(t)
		s.UpsertService(testService("web", tc.edit...))
		for _, sl := range tc.from {
			s.UpsertSlice(sl)
		}
		cs, _ := s.Take()
		if len(cs) != 1 || cs[0].Health != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.name, cs, tc.want)
		}
		for _, svc := range cs[0].Services { // each tells its dataplane
			if svc.Terms.HealthPort != tc.want.Port {
				t.Errorf("%s: %s has the port %d, want %d", tc.name, svc.Name, svc.Terms.HealthPort, tc.want.Port)
			}
		}
	}
	_, ps := Resolve(testService("web", balancer("203.0.113.1"), externalLocal, healthPort(70000)), nil, lb.Node{}, testOptions())
	if len(ps) != 1 || ps[0].Message() != "spec.healthCheckNodePort: 70000 is outside 1..65535" {
		t.Errorf("problems %v, want one of the port", ps)
	}
}

// TestHealthCheckFollowsWeights: what is drained by its weight takes no connections, so
// load balancers should go elsewhere.
func TestHealthCheckFollowsWeights(t *testing.T) {
	s, _ := newStore(t)
	s.UpsertService(testService("web", balancer("203.0.113.1"), externalLocal, healthPort(31000)))
	s.UpsertSlice(podSlice("web", "web-1", "10.0.0.1", "10.0.0.2", "10.0.0.3 remote"))
	light := podSlice("web", "web-2", "10.0.0.4")
	for _, step := range []struct {
		name string
		do   func()
		want int
	}{
		{"all as usual", func() {}, 2},
		{"one is drained", func() { s.testPodWeight("pod-1", "0") }, 1},
		{"one of another node is drained", func() { s.testPodWeight("pod-3", "0") }, 1},
		{"a slice is drained", func() { s.UpsertSlice(sliceWeight(light, "0")) }, 1},
		{"it is not", func() { s.UpsertSlice(sliceWeight(light.DeepCopy(), "1")) }, 2},
		{"this node is drained, but for who has another weight", func() { s.testNodeWeight(thisNode, "0") }, 1},
		{"and that one", func() { s.UpsertSlice(sliceWeight(light.DeepCopy(), "0")) }, 0},
		{"a Pod is back", func() { s.testPodWeight("pod-1", "5") }, 1},
	} {
		step.do()
		s.Take()
		if got := s.entries[object("web")].health.Ready; got != [2]int{step.want, 0} {
			t.Errorf("%s: %v ready, want %d", step.name, got, step.want)
		}
	}
}

// TestHealthAloneIsAChange has a Service port that no endpoint is for.
func TestHealthAloneIsAChange(t *testing.T) {
	s, _ := newStore(t)
	other := func(specs ...string) *discovery.EndpointSlice {
		sl := testSlice("web", "web-1", specs...)
		sl.Ports[0].Name = ptr("another")
		return sl
	}
	svc := testService("web", balancer("203.0.113.1"), externalLocal, healthPort(31000))
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"begin", func() { s.UpsertService(svc) }, "31000 [0 0] 1"},
		{"one endpoint", func() { s.UpsertSlice(other("10.0.0.1")) }, "31000 [1 0] 1"},
		{"of another node", func() { s.UpsertSlice(other("10.0.0.1", "10.0.0.2 remote")) }, ""},
		{"two", func() { s.UpsertSlice(other("10.0.0.1", "10.0.0.2")) }, "31000 [2 0] 1"},
		{"another port", func() { s.UpsertService(testService("web", balancer("203.0.113.1"), externalLocal, healthPort(31001))) }, "31001 [2 0] 1"},
		{"a headless one", func() { s.UpsertService(testService("web", clusterIP("None"), externalLocal, healthPort(31001))) }, "0 [0 0] 0"},
		{"back", func() { s.UpsertService(svc) }, "31000 [2 0] 1"},
		{"gone", func() { s.DeleteService(object("web")) }, "0 [0 0] 0"},
	} {
		step.do()
		cs, _ := s.Take()
		got := ""
		for _, c := range cs {
			got += fmt.Sprint(c.Health.Port, " ", c.Health.Ready, " ", len(c.Services))
		}
		if got != step.want {
			t.Errorf("%s: got %q, want %q", step.name, got, step.want)
		}
	}
}

// TestTriggerTimes follows the annotation of slices.
func TestTriggerTimes(t *testing.T) {
	s, _ := newStore(t)
	start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	s.started = start.UnixNano()
	s.UpsertService(testService("web"))
	put := func(name string, after time.Duration, specs ...string) {
		sl := testSlice("web", name, specs...)
		sl.Annotations = map[string]string{v1.EndpointsLastChangeTriggerTime: start.Add(after).Format(time.RFC3339Nano)}
		s.UpsertSlice(sl)
	}
	never := time.Duration(-1)
	for _, step := range []struct {
		name string
		do   func()
		want time.Duration // after start; never: no time
	}{
		{"before the process", func() { put("a", -time.Second, "10.0.0.1") }, never},
		{"a change", func() { put("a", 1500*time.Millisecond, "10.0.0.2") }, 1500 * time.Millisecond},
		{"the oldest of two, which came first", func() { put("a", 2*time.Second, "10.0.0.10"); put("b", 3*time.Second, "10.0.0.11") }, 2 * time.Second},
		{"the oldest of two", func() { put("b", 4*time.Second, "10.0.0.3"); put("a", 3*time.Second, "10.0.0.4") }, 3 * time.Second},
		{"a change that is not the endpoints'", func() { put("a", 3*time.Second, "10.0.0.5") }, never},
		{"one that changes nothing, and then another", func() { put("a", 5*time.Second, "10.0.0.5"); put("a", 5*time.Second, "10.0.0.6") }, never},
		{"not a time", func() {
			sl := testSlice("web", "a", "10.0.0.7")
			sl.Annotations = map[string]string{v1.EndpointsLastChangeTriggerTime: "noon"}
			s.UpsertSlice(sl)
		}, never},
		{"no annotation", func() { s.UpsertSlice(testSlice("web", "a", "10.0.0.8")) }, never},
		{"what is not published is forgotten", func() {
			put("a", 7*time.Second, "10.0.0.8", "10.0.0.9 notready")
			if cs, _ := s.Take(); len(cs) != 0 {
				t.Errorf("got %v, want no change", cs)
			}
			s.UpsertService(testService("web", nodePort(30080)))
		}, never},
	} {
		step.do()
		cs, _ := s.Take()
		if len(cs) != 1 {
			t.Fatalf("%s: %d changes, want 1", step.name, len(cs))
		}
		want := time.Time{}
		if step.want != never {
			want = start.Add(step.want)
		}
		if got := cs[0].Triggered; !got.Equal(want) {
			t.Errorf("%s: triggered %s, want %s", step.name, got, want)
		}
	}
	if got := New(testOptions(), discard(), nil).started; time.Since(time.Unix(0, got)).Abs() > time.Hour {
		t.Errorf("a Store started at %s", time.Unix(0, got))
	}
}
