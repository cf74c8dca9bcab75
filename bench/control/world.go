// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/bench/control/fakeapi"
	"github.com/lbproxy/lbproxy/bench/internal/node"
)

const maxPerSlice = 100 // endpoints of a slice, as kube-controller-manager makes them

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

func plus(a netip.Addr, n int) netip.Addr { return node.Plus(a, n) }

func ptr[T any](v T) *T { return &v }

func newWorld(s scale, served bool) (*world, error) {
	w := &world{scale: s, served: served}
	return w, w.fill()
}

// fill makes the objects.
func (w *world) fill() error {
	w.api, w.fresh = fakeapi.New(), firstNew
	objects := []fakeapi.Object{node.Own()}
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

// newService has no frontend but its cluster IP.
func newService(i int, proto corev1.Protocol) *corev1.Service {
	return node.Service(serviceName(i), plus(firstVIP, i), node.Port{Proto: proto, Frontend: servicePort})
}

// newSlices has the endpoints of Service i, at most maxPerSlice in each.
func newSlices(i, endpoints int, proto corev1.Protocol) []*discovery.EndpointSlice {
	var slices []*discovery.EndpointSlice
	for n := range endpoints {
		if n%maxPerSlice == 0 {
			slices = append(slices, node.Slice(serviceName(i), len(slices), node.Port{Proto: proto, Backend: endpointPort}))
		}
		sl := slices[len(slices)-1]
		id := i*endpoints + n
		e := node.Endpoint(plus(firstPod, id), fmt.Sprintf("node-%d", id%1000))
		e.Zone = ptr(fmt.Sprintf("zone-%d", id%3))
		e.TargetRef = &corev1.ObjectReference{
			Kind: "Pod", Namespace: node.Namespace, Name: fmt.Sprintf("%s-%05d", serviceName(i), n),
		}
		sl.Endpoints = append(sl.Endpoints, e)
	}
	return slices
}
