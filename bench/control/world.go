// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/bench/control/fakeapi"
	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	namespace   = "bench"
	portName    = "http"
	maxPerSlice = 100 // endpoints, as kube-controller-manager makes them
)

// Ranges of addresses. Nobody dials one of them where the world is not served.
var (
	podRange  = netip.MustParsePrefix("10.128.0.0/9")
	firstPod  = netip.MustParseAddr("10.128.0.1")
	firstNew  = netip.MustParseAddr("10.200.0.1") // of pods that take another's place
	newPrefix = [2]byte{10, 200}
	firstVIP  = netip.MustParseAddr("10.96.0.1")
)

// scale is how much there is.
type scale struct {
	services  int
	endpoints int // of each Service
}

func (s scale) String() string { return fmt.Sprintf("%d Services x %d", s.services, s.endpoints) }

// huge tells whether that is more than lbproxy's tables hold by default.
func (s scale) huge() bool { return s.services*s.endpoints > 200_000 }

// world is the objects of a cluster, and the API server that has them.
type world struct {
	scale
	served  bool // endpoints answer, and every tenth Service is of UDP
	holders int  // pods that hold sockets to Services, all of which are of UDP then
	api     *fakeapi.Server
	slices  [][]*discovery.EndpointSlice // of each Service
	fresh   netip.Addr                   // of the next new pod
}

// plus returns the address n after a.
func plus(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	n += int(b[0])<<24 | int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func ptr[T any](v T) *T { return &v }

func newWorld(s scale, served bool) (*world, error) {
	w := &world{scale: s, served: served}
	return w, w.fill()
}

// fill makes the objects.
func (w *world) fill() error {
	w.api, w.fresh = fakeapi.New(), firstNew
	objects := []fakeapi.Object{ownNode()}
	for i := range w.services {
		objects = append(objects, newService(i, w.protocol(i)))
		w.slices = append(w.slices, newSlices(i, w.endpoints, w.protocol(i)))
		for _, sl := range w.slices[i] {
			objects = append(objects, sl)
		}
	}
	for _, obj := range objects {
		if _, err := w.api.Put(obj); err != nil {
			return err
		}
	}
	return nil
}

// change puts a new pod in the place of one of Service i, in slice k of it. It
// returns the new pod's address.
func (w *world) change(i, k int) (*discovery.EndpointSlice, netip.Addr) {
	sl := w.slices[i][k]
	addr := w.fresh
	w.fresh = w.fresh.Next()
	place := int(addr.As4()[3]) % len(sl.Endpoints)
	sl.Endpoints[place].Addresses = []string{addr.String()}
	return sl, addr
}

// udp tells whether Service i is of UDP.
func (w *world) udp(i int) bool { return w.holders > 0 || w.served && i%10 == 9 }

func (w *world) protocol(i int) corev1.Protocol {
	if w.udp(i) {
		return corev1.ProtocolUDP
	}
	return corev1.ProtocolTCP
}

func serviceName(i int) string { return fmt.Sprintf("svc-%d", i) }

func newService(i int, proto corev1.Protocol) *corev1.Service {
	vip := plus(firstVIP, i).String()
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: serviceName(i)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: vip, ClusterIPs: []string{vip},
			IPFamilies:            []corev1.IPFamily{corev1.IPv4Protocol},
			IPFamilyPolicy:        ptr(corev1.IPFamilyPolicySingleStack),
			InternalTrafficPolicy: ptr(corev1.ServiceInternalTrafficPolicyCluster),
			SessionAffinity:       corev1.ServiceAffinityNone,
			Selector:              map[string]string{"app": serviceName(i)},
			Ports:                 []corev1.ServicePort{{Name: portName, Protocol: proto, Port: servicePort}},
		},
	}
}

// newSlices has the endpoints of Service i, at most maxPerSlice in each.
func newSlices(i, endpoints int, proto corev1.Protocol) []*discovery.EndpointSlice {
	var slices []*discovery.EndpointSlice
	for n := range endpoints {
		if n%maxPerSlice == 0 {
			slices = append(slices, &discovery.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: namespace, Name: fmt.Sprintf("%s-%d", serviceName(i), len(slices)),
					Labels: map[string]string{
						discovery.LabelServiceName: serviceName(i),
						discovery.LabelManagedBy:   "endpointslice-controller.k8s.io",
					},
				},
				AddressType: discovery.AddressTypeIPv4,
				Ports: []discovery.EndpointPort{{
					Name: ptr(portName), Protocol: ptr(proto), Port: ptr(int32(endpointPort)),
				}},
			})
		}
		sl := slices[len(slices)-1]
		id := i*endpoints + n
		sl.Endpoints = append(sl.Endpoints, discovery.Endpoint{
			Addresses:  []string{plus(firstPod, id).String()},
			NodeName:   ptr(fmt.Sprintf("node-%d", id%1000)),
			Zone:       ptr(fmt.Sprintf("zone-%d", id%3)),
			Conditions: discovery.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)},
			TargetRef: &corev1.ObjectReference{
				Kind: "Pod", Namespace: namespace, Name: fmt.Sprintf("%s-%05d", serviceName(i), n),
			},
		})
	}
	return slices
}

// ownNode is the Node on which everything runs.
func ownNode() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: lab.Node, Labels: map[string]string{corev1.LabelTopologyZone: "zone-0", corev1.LabelHostname: lab.Node},
		},
		Spec: corev1.NodeSpec{PodCIDR: lab.NodePods4.String(), PodCIDRs: []string{lab.NodePods4.String()}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: lab.NodeAddr4.String()},
			{Type: corev1.NodeInternalIP, Address: lab.NodeAddr6.String()},
			{Type: corev1.NodeHostName, Address: lab.Node},
		}},
	}
}
