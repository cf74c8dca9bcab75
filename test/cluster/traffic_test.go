// SPDX-License-Identifier: Apache-2.0

//go:build root

package cluster

import (
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// TestTraffic runs lbproxy on a node of namespaces against a real API server,
// with the rights of the deployment and no more. Calls from a pod and a process
// that the socket programs see, from a pod that they do not see and from another
// machine tell whether the node follows what the API server says.
//
// The steps share the node, each has Services of its own.
func TestTraffic(t *testing.T) {
	s := newStage(t)
	rules, err := Manifest("daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !t.Run("forbidden", func(t *testing.T) { testForbidden(t, s, rules) }) {
		return
	}
	kubeconfig, err := s.cluster.KubeconfigFor(t.Context(), lbproxy, rules)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	a := s.startAgent(t, lbproxy.Name, kubeconfig)
	s.awaitHealth(t, http.StatusOK)
	t.Logf("lbproxy ready after %v", time.Since(began).Round(time.Millisecond))
	for _, step := range []struct {
		name string
		run  func(*testing.T, *stage)
	}{
		{"api server", testAPIServer},
		{"endpoints", testEndpoints},
		{"slices", testSlices},
		{"recreate", testRecreate},
		{"ports", testPorts},
		{"types", testTypes},
		{"algorithm", testAlgorithm},
		{"not ours", testNotOurs},
		{"external name", testExternalName},
		{"conflict", testConflict},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, s) }) {
			a.running(t)
		}
	}
	a.quiet(t, "level=ERROR")
	t.Run("access", func(t *testing.T) { testUsedAccess(t, s, rules) })
	if !t.Failed() {
		t.Run("faults", func(t *testing.T) { testFaults(t, s, a, kubeconfig) })
	}
}

// newWeb is a Service on TCP and UDP port 80.
func newWeb(name string) *corev1.Service {
	return NewService(name, corev1.ServiceTypeClusterIP,
		Port("tcp", corev1.ProtocolTCP, 80, podPort), Port("udp", corev1.ProtocolUDP, 80, podPort))
}

// web makes a Service with pods and waits until it answers.
func (s *stage) web(t *testing.T, name string, pods ...string) *corev1.Service {
	t.Helper()
	return s.serve(t, newWeb(name), pods...)
}

func (s *stage) serve(t *testing.T, svc *corev1.Service, pods ...string) *corev1.Service {
	t.Helper()
	began := time.Now()
	svc = s.put(t, svc)
	s.putPods(t, svc, pods...)
	s.follow(t, began, expect{svc.Name + ": create", answers(pods...), atCluster(svc)})
	return svc
}

func testEndpoints(t *testing.T, s *stage) {
	svc := s.web(t, "web", "backend1")
	at := atCluster(svc)
	began := time.Now()
	s.putPods(t, svc, "backend1", "backend2", "remote1")
	s.follow(t, began, expect{"add two endpoints", answers("backend1", "backend2", "remote1"), at})

	conns := s.open(t, "backend2", tcpOnly(at)...)
	began = time.Now()
	s.putPods(t, svc, "backend1", "remote1")
	s.follow(t, began, expect{"remove an endpoint", answers("backend1", "remote1"), at})
	conns.ping(t) // what was open goes on

	began = time.Now()
	s.putPods(t, svc)
	s.follow(t, began, expect{"remove all endpoints", refused, at})
	conns.ping(t)

	began = time.Now()
	s.putPods(t, svc, "backend3")
	s.follow(t, began, expect{"add one again", answers("backend3"), at})

	conns = s.open(t, "backend3", tcpOnly(at)...)
	began = time.Now()
	s.drop(t, svc)
	s.follow(t, began, expect{"delete", silent, at})
	conns.ping(t)
}

func tcpOnly(ts []target) []target {
	return slices.DeleteFunc(slices.Clone(ts), func(t target) bool { return t.proto != lab.TCP })
}

// The endpoints of a Service are those of all its slices. Moving one from slice
// to slice, which takes two writes, disturbs nobody.
func testSlices(t *testing.T, s *stage) {
	svc := s.web(t, "split", "backend1", "backend2")
	at := atCluster(svc)
	calls := s.pulse(t, answers("backend1", "backend2", "backend3"), nil, at...)
	began := time.Now()
	s.putSlices(t, svc, "second", "backend2", "backend3")
	s.follow(t, began, expect{"one endpoint in two slices", answers("backend1", "backend2", "backend3"), at})
	began = time.Now()
	s.putPods(t, svc, "backend1")
	s.follow(t, began, expect{"moved to the second slice", answers("backend1", "backend2", "backend3"), at})
	began = time.Now()
	for _, family := range []string{"-ipv4", "-ipv6"} {
		err := s.cluster.Client().DiscoveryV1().EndpointSlices(svc.Namespace).Delete(t.Context(), svc.Name+family, metav1.DeleteOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.follow(t, began, expect{"delete the first slice", answers("backend2", "backend3"), at})
	calls.end(t)
	s.drop(t, svc)
}

// putSlices makes pods the endpoints in slices of svc beside those of putPods.
func (s *stage) putSlices(t *testing.T, svc *corev1.Service, suffix string, pods ...string) {
	t.Helper()
	for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice, err := newSlice(svc, family, s.endpoints(pods...))
		if err != nil {
			t.Fatal(err)
		}
		slice.Name += "-" + suffix
		if err := s.cluster.putSlice(t.Context(), slice); err != nil {
			t.Fatal(err)
		}
	}
}

// A Service that is deleted and made again gets other cluster IPs. Its slices
// may be the old ones.
func testRecreate(t *testing.T, s *stage) {
	svc := s.web(t, "again", "backend1")
	api := s.cluster.Client().CoreV1().Services(svc.Namespace)
	began := time.Now()
	if err := api.Delete(t.Context(), svc.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	next := s.put(t, newWeb(svc.Name))
	s.follow(t, began,
		expect{"recreate, other addresses", answers("backend1"), atCluster(next)},
		expect{"recreate, old addresses", silent, atCluster(svc)})
	if slices.Equal(next.Spec.ClusterIPs, svc.Spec.ClusterIPs) || next.UID == svc.UID {
		t.Errorf("got %v twice, want another Service", svc.Spec.ClusterIPs)
	}

	began = time.Now()
	if err := api.Delete(t.Context(), svc.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	same := newWeb(svc.Name)
	same.Spec.ClusterIP, same.Spec.ClusterIPs = next.Spec.ClusterIP, next.Spec.ClusterIPs
	same.Spec.Ports[0].TargetPort.IntVal, same.Spec.Ports[1].TargetPort.IntVal = otherPort, otherPort
	same = s.put(t, same)
	s.putPods(t, same, "backend2")
	s.follow(t, began, expect{"recreate, same addresses", answersAt(otherPort, "backend2"), atCluster(next)})
	s.drop(t, same)
}

func testPorts(t *testing.T, s *stage) {
	svc := s.web(t, "ports", "backend1", "backend2")
	old := atCluster(svc)
	svc.Spec.Ports[0].Port, svc.Spec.Ports[1].Port = 81, 82
	began := time.Now()
	svc = s.put(t, svc)
	s.follow(t, began,
		expect{"port change, new ports", answers("backend1", "backend2"), atCluster(svc)},
		expect{"port change, old port", closed, old})

	svc.Spec.Ports[0].TargetPort.IntVal, svc.Spec.Ports[1].TargetPort.IntVal = otherPort, otherPort
	began = time.Now()
	svc = s.put(t, svc)
	s.putPods(t, svc, "backend1", "backend2")
	s.follow(t, began, expect{"target port change", answersAt(otherPort, "backend1", "backend2"), atCluster(svc)})

	both := atCluster(svc)
	svc.Spec.Ports = svc.Spec.Ports[:1]
	began = time.Now()
	svc = s.put(t, svc)
	s.follow(t, began,
		expect{"remove the UDP port", closed, both[len(both)/2:]},
		expect{"the TCP port stays", answersAt(otherPort, "backend1", "backend2"), atCluster(svc)})
	s.drop(t, svc)
}

// balanceAddrs are addresses that a cloud gave to a Service.
var balanceAddrs = []netip.Addr{netip.MustParseAddr("172.32.0.10"), netip.MustParseAddr("fd00:32::10")}

func atBalance(svc *corev1.Service) []target { return targets(svc, servicePort, balanceAddrs...) }

// A Service becomes NodePort, LoadBalancer and ClusterIP again; its cluster IP
// answers all the time.
func testTypes(t *testing.T, s *stage) {
	meets := answers("backend1", "remote1")
	svc := s.web(t, "types", "backend1", "remote1")
	at := atCluster(svc)
	calls := s.pulse(t, meets, s.open(t, "backend1", at...), at...)

	svc.Spec.Type = corev1.ServiceTypeNodePort
	began := time.Now()
	svc = s.put(t, svc)
	atNodePorts := atNode(svc)
	s.follow(t, began, expect{"ClusterIP to NodePort", meets, atNodePorts})

	svc.Spec.Type = corev1.ServiceTypeLoadBalancer
	svc = s.put(t, svc)
	began = time.Now()
	svc, err := s.cluster.SetIngress(t.Context(), svc, balanceAddrs...)
	if err != nil {
		t.Fatal(err)
	}
	s.follow(t, began,
		expect{"NodePort to LoadBalancer", meets, atBalance(svc)},
		expect{"node port of the LoadBalancer", meets, atNodePorts})

	conns := s.open(t, "remote1", tcpOnly(atBalance(svc))...)
	svc.Spec.Type = corev1.ServiceTypeClusterIP
	began = time.Now()
	svc = s.put(t, svc)
	s.follow(t, began,
		expect{"LoadBalancer to ClusterIP, ingress", silent, atBalance(svc)},
		expect{"LoadBalancer to ClusterIP, node port", closed, atNodePorts},
		expect{"LoadBalancer to ClusterIP, cluster IP", meets, at})
	conns.ping(t)
	calls.end(t)
	s.drop(t, svc)
}
