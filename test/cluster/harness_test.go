// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

var lbproxy = types.NamespacedName{Namespace: "lbproxy", Name: "lbproxy"}

// newCluster starts a cluster that ends with the test.
func newCluster(t *testing.T, opts Options) *Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a control plane")
	}
	if _, err := Build(t.Context()); err != nil { // not part of the time below
		t.Fatal(err)
	}
	opts.Dir = t.TempDir()
	began := time.Now()
	c, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("ready after %v at %s", time.Since(began).Round(time.Millisecond), c.admin.Host)
	return c
}

// The steps share one cluster and build on each other: a start costs seconds.
func TestCluster(t *testing.T) {
	c := newCluster(t, Options{})
	for _, step := range []struct {
		name string
		run  func(*testing.T, *Cluster)
	}{
		{"version", testVersion},
		{"service", testService},
		{"node", testNode},
		{"access", testAccess},
		{"daemonset", testDaemonSet},
		{"restart", testRestart},
		{"delete", testDelete},
		{"stop", testStop},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, c) }) {
			return
		}
	}
}

func testVersion(t *testing.T, c *Cluster) {
	v, err := c.Client().Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if v.GitVersion != "v1.37.2" || v.Major != "1" || v.Minor != "37" {
		t.Errorf("got version %+v, want v1.37.2", v)
	}
}

func testService(t *testing.T, c *Cluster) {
	ctx := t.Context()
	svc, err := c.PutService(ctx, NewService("web", corev1.ServiceTypeLoadBalancer,
		Port("http", corev1.ProtocolTCP, 80, 8080), Port("dns", corev1.ProtocolUDP, 53, 0)))
	if err != nil {
		t.Fatal(err)
	}
	checkAllocated(t, svc)
	if svc, err = c.SetIngress(ctx, svc, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")); err != nil {
		t.Fatal(err)
	}
	if got := len(svc.Status.LoadBalancer.Ingress); got != 2 {
		t.Errorf("got %d ingress addresses, want 2", got)
	}

	// An update that starts from scratch keeps what was allocated.
	again := NewService("web", corev1.ServiceTypeLoadBalancer, Port("http", corev1.ProtocolTCP, 81, 8080))
	next, err := c.PutService(ctx, again)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(next.Spec.ClusterIPs, svc.Spec.ClusterIPs) || next.Spec.Ports[0].Port != 81 {
		t.Errorf("after an update: got %v port %d, want %v port 81", next.Spec.ClusterIPs, next.Spec.Ports[0].Port, svc.Spec.ClusterIPs)
	}

	v4 := NewEndpoint(netip.MustParseAddr("10.244.1.2"), "node1")
	v6 := NewEndpoint(netip.MustParseAddr("fd00:10:244:1::2"), "node1")
	for _, want := range [][2][]discoveryv1.Endpoint{
		{{v4}, {v6}},
		{{v4}, nil},
	} {
		if err := c.PutEndpoints(ctx, next, slices.Concat(want[0], want[1])...); err != nil {
			t.Fatal(err)
		}
		checkSlices(t, c, "web", want)
	}
}

// checkAllocated says whether svc got an address of each family and node ports.
func checkAllocated(t *testing.T, svc *corev1.Service) {
	t.Helper()
	ranges := []string{ServiceRange4, ServiceRange6}
	if len(svc.Spec.ClusterIPs) != len(ranges) {
		t.Fatalf("got cluster IPs %v, want one in each of %v", svc.Spec.ClusterIPs, ranges)
	}
	for i, r := range ranges {
		if !netip.MustParsePrefix(r).Contains(netip.MustParseAddr(svc.Spec.ClusterIPs[i])) {
			t.Errorf("got cluster IP %s, want one in %s", svc.Spec.ClusterIPs[i], r)
		}
	}
	for _, p := range svc.Spec.Ports {
		if p.NodePort == 0 {
			t.Errorf("port %s: no node port", p.Name)
		}
	}
}

// checkSlices compares the addresses of a Service in default, v4 then v6.
func checkSlices(t *testing.T, c *Cluster, svc string, want [2][]discoveryv1.Endpoint) {
	t.Helper()
	list, err := c.Client().DiscoveryV1().EndpointSlices("default").List(t.Context(),
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + svc})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != len(want) { // sorted by name: web-ipv4, web-ipv6
		t.Fatalf("got %d slices, want %d", len(list.Items), len(want))
	}
	for i, s := range list.Items {
		same := slices.EqualFunc(s.Endpoints, want[i], func(a, b discoveryv1.Endpoint) bool {
			return slices.Equal(a.Addresses, b.Addresses) && *a.NodeName == *b.NodeName
		})
		if !same || *s.Ports[0].Port != 8080 {
			t.Errorf("slice %s: got %v ports %v, want %v port 8080", s.Name, s.Endpoints, s.Ports, want[i])
		}
	}
}

func testNode(t *testing.T, c *Cluster) {
	n := Node{
		Name:     "node1",
		Addrs:    []netip.Addr{netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("fd00:30::11")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
	}
	for _, zone := range []string{"a", "b"} { // create, then update
		n.Labels = map[string]string{corev1.LabelTopologyZone: zone}
		got, err := c.PutNode(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		if got.Labels[corev1.LabelTopologyZone] != zone || len(got.Spec.PodCIDRs) != 2 || len(got.Status.Addresses) != 3 {
			t.Errorf("got labels %v, pod CIDRs %v, addresses %v, want %+v", got.Labels, got.Spec.PodCIDRs, got.Status.Addresses, n)
		}
	}
}

// testAccess holds the ClusterRole of deploy/daemonset.yaml to what lbproxy needs and to
// nothing more. That it needs all of it is told by TestTraffic.
func testAccess(t *testing.T, c *Cluster) {
	path, err := Manifest("daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file, err := c.KubeconfigFor(t.Context(), lbproxy, path)
	if err != nil {
		t.Fatal(err)
	}
	client := clientFor(t, file)
	want := map[schemaVerb]bool{}
	for _, r := range []struct {
		group, resource string
		verbs           []string
	}{
		{"", "services", []string{"list", "watch"}},
		{"discovery.k8s.io", "endpointslices", []string{"list", "watch"}},
		{"", "nodes", []string{"list", "watch"}},
		{"", "events", []string{"create", "patch"}},
		{"events.k8s.io", "events", nil},
		{"", "secrets", nil}, {"", "pods", []string{"list", "watch"}}, {"", "configmaps", nil}, {"", "services/status", nil},
		{"", "nodes/status", nil}, {"coordination.k8s.io", "leases", nil}, {"apps", "daemonsets", nil},
	} {
		for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"} {
			want[schemaVerb{r.group, r.resource, verb}] = slices.Contains(r.verbs, verb)
		}
	}
	for k, want := range want {
		got, err := allowed(t.Context(), client, authorizationv1.ResourceAttributes{Group: k.group, Resource: k.resource, Verb: k.verb})
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s %s.%s: got allowed %v, want %v", k.verb, k.resource, k.group, got, want)
		}
	}
	checkUse(t, client)
}

type schemaVerb struct{ group, resource, verb string }

// checkUse does what lbproxy does, and some of what it must not.
func checkUse(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	ctx := t.Context()
	core := client.CoreV1()
	svcs, err := core.Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := core.Services("").Watch(ctx, metav1.ListOptions{ResourceVersion: svcs.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	w.Stop()
	if _, err := client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := core.Nodes().List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=node1"}); err != nil {
		t.Error(err)
	}
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: "default", GenerateName: "web."},
		InvolvedObject: corev1.ObjectReference{Kind: "Service", Namespace: "default", Name: "web"},
		Reason:         "Test", Message: "a test", Type: corev1.EventTypeNormal,
	}
	if _, err := core.Events("default").Create(ctx, event, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := core.Secrets("").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list secrets: got error %v, want forbidden", err)
	}
	if _, err := core.Services("default").Update(ctx, &svcs.Items[0], metav1.UpdateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("update service: got error %v, want forbidden", err)
	}
}

func clientFor(t *testing.T, kubeconfig string) kubernetes.Interface {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS = -1
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func testDaemonSet(t *testing.T, c *Cluster) {
	path, err := Manifest("daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // create, then no change
		if _, err := c.Apply(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	ds, err := c.Client().AppsV1().DaemonSets(lbproxy.Namespace).Get(t.Context(), "lbproxy", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if ds.Generation != 1 {
		t.Errorf("got generation %d, want 1: the second apply changed something", ds.Generation)
	}
}

func testRestart(t *testing.T, c *Cluster) {
	ctx := t.Context()
	before, err := c.Client().CoreV1().Services("default").Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Client().CoreV1().Services("default").Watch(ctx, metav1.ListOptions{ResourceVersion: before.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	began := time.Now()
	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped in %v, with a watch open", time.Since(began).Round(time.Millisecond))
	if _, err := c.Client().CoreV1().Services("default").List(ctx, metav1.ListOptions{}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("while stopped: got error %v, want connection refused", err)
	}
	began = time.Now()
	if err := c.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("ready again after %v", time.Since(began).Round(time.Millisecond))
	after, err := c.Client().CoreV1().Services("default").Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if after.UID != before.UID || after.ResourceVersion != before.ResourceVersion {
		t.Errorf("got %s@%s, want %s@%s", after.UID, after.ResourceVersion, before.UID, before.ResourceVersion)
	}
}

func testDelete(t *testing.T, c *Cluster) {
	svc := NewService("web", corev1.ServiceTypeClusterIP)
	for range 2 { // the second time there is nothing to delete
		if err := c.DeleteService(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
	}
	list, err := c.Client().DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list.Items {
		if s.Labels[discoveryv1.LabelServiceName] == "web" {
			t.Errorf("slice %s is still there", s.Name)
		}
	}
}

func testStop(t *testing.T, c *Cluster) {
	procs, data := []*process{c.etcd, c.apiserver}, c.data
	began := time.Now()
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped in %v", time.Since(began).Round(time.Millisecond))
	for _, p := range procs {
		if err := syscall.Kill(p.cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%s: pid %d: got error %v, want no such process", p.name, p.cmd.Process.Pid, err)
		}
	}
	if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: got error %v, want gone", data, err)
	}
}

// A failing start reports why and leaves nothing running.
func TestStartFails(t *testing.T) {
	c := newCluster(t, Options{})
	_, err := Start(t.Context(), Options{Dir: t.TempDir(), Port: c.opts.Port})
	if err == nil {
		t.Fatal("two servers on one port: got no error")
	}
	t.Log(err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Options{Dir: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want canceled", err)
	}
}
