// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// Namespace is that of all objects.
const Namespace = "bench"

const portName = "http"

// Port is the only port of a Service. Of a Service the frontend and the node port count,
// of a slice the backend.
type Port struct {
	Proto             corev1.Protocol
	Frontend, Backend uint16
	NodePort          uint16 // 0: none
}

// Plus returns the IPv4 address n after a.
func Plus(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	n += int(b[0])<<24 | int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func ptr[T any](v T) *T { return &v }

// Service is one of IPv4.
func Service(name string, vip netip.Addr, port Port) *corev1.Service {
	kind := corev1.ServiceTypeClusterIP
	if port.NodePort != 0 {
		kind = corev1.ServiceTypeNodePort
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name},
		Spec: corev1.ServiceSpec{
			Type: kind, ClusterIP: vip.String(), ClusterIPs: []string{vip.String()},
			IPFamilies:            []corev1.IPFamily{corev1.IPv4Protocol},
			IPFamilyPolicy:        ptr(corev1.IPFamilyPolicySingleStack),
			InternalTrafficPolicy: ptr(corev1.ServiceInternalTrafficPolicyCluster),
			ExternalTrafficPolicy: map[bool]corev1.ServiceExternalTrafficPolicy{true: corev1.ServiceExternalTrafficPolicyCluster}[port.NodePort != 0],
			SessionAffinity:       corev1.ServiceAffinityNone,
			Selector:              map[string]string{"app": name},
			Ports:                 []corev1.ServicePort{{Name: portName, Protocol: port.Proto, Port: int32(port.Frontend), NodePort: int32(port.NodePort)}},
		},
	}
}

// Slice is number k of a Service, without endpoints.
func Slice(service string, k int, port Port) *discovery.EndpointSlice {
	return &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: Namespace, Name: fmt.Sprintf("%s-%d", service, k),
			Labels: map[string]string{
				discovery.LabelServiceName: service,
				discovery.LabelManagedBy:   "endpointslice-controller.k8s.io",
			},
		},
		AddressType: discovery.AddressTypeIPv4,
		Ports: []discovery.EndpointPort{{
			Name: ptr(portName), Protocol: ptr(port.Proto), Port: ptr(int32(port.Backend)),
		}},
	}
}

// Endpoint is one that is ready.
func Endpoint(addr netip.Addr, node string) discovery.Endpoint {
	return discovery.Endpoint{
		Addresses:  []string{addr.String()},
		NodeName:   ptr(node),
		Conditions: discovery.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)},
	}
}

// Own is the Node on which everything runs.
func Own() *corev1.Node {
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
