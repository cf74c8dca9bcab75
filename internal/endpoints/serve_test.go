// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestDualStackInEveryCombination has each policy, family and order that an API
// server gives to a Service. What is served follows the addresses, never the policy.
func TestDualStackInEveryCombination(t *testing.T) {
	const (
		four, six = "10.96.0.1", "fd00::1"
		v4, v6    = v1.IPv4Protocol, v1.IPv6Protocol
		line4     = "ClusterIP 10.96.0.1:80/TCP cluster/cluster off"
		line6     = "ClusterIP [fd00::1]:80/TCP cluster/cluster off"
		port4     = "NodePort 0.0.0.0:30080/TCP cluster/cluster always"
		port6     = "NodePort [::]:30080/TCP cluster/cluster always"
	)
	single, prefer, require := v1.IPFamilyPolicySingleStack, v1.IPFamilyPolicyPreferDualStack, v1.IPFamilyPolicyRequireDualStack
	for _, tc := range []struct {
		name     string
		policy   *v1.IPFamilyPolicy
		families []v1.IPFamily
		ips      []string
		want     []string
	}{
		{"single, IPv4", &single, []v1.IPFamily{v4}, []string{four}, []string{port4, line4}},
		{"single, IPv6", &single, []v1.IPFamily{v6}, []string{six}, []string{port6, line6}},
		{"prefer dual in an IPv4 cluster", &prefer, []v1.IPFamily{v4}, []string{four}, []string{port4, line4}},
		{"prefer dual in an IPv6 cluster", &prefer, []v1.IPFamily{v6}, []string{six}, []string{port6, line6}},
		{"prefer dual, IPv4 first", &prefer, []v1.IPFamily{v4, v6}, []string{four, six}, []string{port4, line4, port6, line6}},
		{"prefer dual, IPv6 first", &prefer, []v1.IPFamily{v6, v4}, []string{six, four}, []string{port4, line4, port6, line6}},
		{"require dual, IPv4 first", &require, []v1.IPFamily{v4, v6}, []string{four, six}, []string{port4, line4, port6, line6}},
		{"require dual, IPv6 first", &require, []v1.IPFamily{v6, v4}, []string{six, four}, []string{port4, line4, port6, line6}},
		{"no policy, no families", nil, nil, []string{four}, []string{port4, line4}},
		{"no policy, no families, IPv6 first", nil, nil, []string{six, four}, []string{port4, line4, port6, line6}},
	} {
		svc := testService("web", nodePort(30080), withSpec(func(s *v1.ServiceSpec) {
			s.IPFamilyPolicy, s.IPFamilies, s.ClusterIP, s.ClusterIPs = tc.policy, tc.families, tc.ips[0], tc.ips
		}))
		sls := []*discovery.EndpointSlice{testSlice("web", "web-4", "10.0.0.4"), testSlice("web", "web-6", "2001:db8::6")}
		sls[1].AddressType = discovery.AddressTypeIPv6
		got, ps := Resolve(svc, sls, lb.Node{}, testOptions())
		if d := cmp.Diff(tc.want, showFrontends(got)); d != "" || len(ps) > 0 {
			t.Errorf("%s: problems %v; -want +got:\n%s", tc.name, ps, d)
		}
		for _, s := range got {
			want := map[lb.Family]string{lb.IPv4: "4!", lb.IPv6: "6!"}[s.Name.Family]
			if pool := show(s.Cluster); pool != want {
				t.Errorf("%s: %s has %q, want %q", tc.name, s.Name, pool, want)
			}
		}
	}
}

// TestSlicesOfAServiceForAnotherProxyAreUsed has the label on a slice only: it is the
// Service's label that counts.
func TestSlicesOfAServiceForAnotherProxyAreUsed(t *testing.T) {
	sl := testSlice("web", "web-1", "10.0.0.1")
	sl.Labels[labelProxyName] = "x"
	got, ps := Resolve(testService("web"), []*discovery.EndpointSlice{sl}, lb.Node{}, testOptions())
	if len(got) != 1 || show(got[0].Cluster) != "1!" || len(ps) > 0 {
		t.Errorf("got %v, problems %v; want 1!", got, ps)
	}
}

// TestServiceThatChangesItsKind goes from served to not served and back.
func TestServiceThatChangesItsKind(t *testing.T) {
	s, _ := newStore(t)
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1"))
	label := func(s *v1.Service) { s.Labels = map[string]string{labelProxyName: ""} }
	for _, step := range []struct {
		name string
		edit func(*v1.Service)
		want int
	}{
		{"served", func(*v1.Service) {}, 1},
		{"given to another proxy", label, 0},
		{"taken back", func(*v1.Service) {}, 1},
		{"external name, with its address still", withSpec(func(s *v1.ServiceSpec) { s.Type = v1.ServiceTypeExternalName }), 0},
		{"taken back", func(*v1.Service) {}, 1},
		{"headless", clusterIP(v1.ClusterIPNone), 0},
	} {
		s.UpsertService(testService("web", step.edit))
		if cs, _ := s.Take(); len(cs) != 1 || len(cs[0].Services) != step.want {
			t.Errorf("%s: got %v, want a change to %d Services", step.name, cs, step.want)
		}
	}
}

func TestLoadBalancerWithoutNodePorts(t *testing.T) {
	svc := testService("web", balancer("203.0.113.1"), externalLocal, withSpec(func(s *v1.ServiceSpec) { s.AllocateLoadBalancerNodePorts = ptr(false) }))
	got, ps := Resolve(svc, nil, lb.Node{}, testOptions())
	want := []string{"ClusterIP 10.96.0.1:80/TCP cluster/cluster off", "LoadBalancer 203.0.113.1:80/TCP cluster/local never"}
	if d := cmp.Diff(want, showFrontends(got)); d != "" || len(ps) > 0 {
		t.Errorf("problems %v; -want +got:\n%s", ps, d)
	}
}

// TestMasqueradeOfClusterIPs: whether pods are known at all is the dataplane's business.
func TestMasqueradeOfClusterIPs(t *testing.T) {
	for _, tc := range []struct {
		all  bool
		want lb.Masquerade
	}{
		{false, lb.MasqueradeOffCluster},
		{true, lb.MasqueradeAlways},
	} {
		o := testOptions()
		o.MasqueradeAll = tc.all
		got, _ := Resolve(testService("web", nodePort(30080)), nil, lb.Node{}, o)
		for _, fe := range got[0].Frontends {
			want := tc.want
			if fe.Type == lb.NodePort {
				want = lb.MasqueradeAlways
			}
			if fe.Masquerade != want {
				t.Errorf("masquerade all %t: %s %d, want %d", tc.all, fe.Type, fe.Masquerade, want)
			}
		}
	}
}

func TestSCTPWhereItIsServed(t *testing.T) {
	svc := testService("web", nodePort(30080), withSpec(func(s *v1.ServiceSpec) { s.Ports[0].Protocol = v1.ProtocolSCTP }))
	sl := testSlice("web", "web-1", "10.0.0.1")
	sl.Ports[0].Protocol = ptr(v1.ProtocolSCTP)
	for _, served := range []bool{false, true} {
		o := testOptions()
		o.SCTP = served
		got, ps := Resolve(svc, []*discovery.EndpointSlice{sl}, lb.Node{}, o)
		want, reason, message := []string(nil), ReasonUnsupportedProto, "spec.ports[0].protocol: SCTP is not served by the eBPF dataplane"
		if served {
			want = []string{"NodePort 0.0.0.0:30080/SCTP cluster/cluster always", "ClusterIP 10.96.0.1:80/SCTP cluster/cluster off"}
			reason, message = ReasonSCTPFromNode, "spec.ports[0].protocol: SCTP is not served to processes in the node's own network namespace"
		}
		if d := cmp.Diff(want, showFrontends(got)); d != "" || !slices.Equal(reasons(ps), []string{reason}) || ps[0].Message() != message {
			t.Errorf("served %t: problems %v; -want +got:\n%s", served, ps, d)
		}
		if len(ps) > 0 && ps[0].Quiet != served {
			t.Errorf("served %t: quiet %t", served, ps[0].Quiet)
		}
		if served && show(got[0].Cluster) != "1!" {
			t.Errorf("served: %q, want 1!", show(got[0].Cluster))
		}
	}
}
