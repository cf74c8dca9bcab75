// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Port returns a Service port that leads to port target of the endpoints.
// A Service with several ports needs them named.
func Port(name string, proto corev1.Protocol, port, target int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Protocol: proto, Port: port, TargetPort: intstr.FromInt32(target)}
}

// NewService returns a dual-stack Service in the namespace default, without a
// selector: nobody but PutEndpoints writes its EndpointSlices.
func NewService(name string, typ corev1.ServiceType, ports ...corev1.ServicePort) *corev1.Service {
	dual := corev1.IPFamilyPolicyRequireDualStack
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name},
		Spec:       corev1.ServiceSpec{Type: typ, Ports: ports, IPFamilyPolicy: &dual},
	}
}

// PutService creates svc, or makes the existing Service equal to it. Addresses
// and node ports that svc leaves open are allocated, or kept. It returns the
// stored object, which may be changed and put again.
func (c *Cluster) PutService(ctx context.Context, svc *corev1.Service) (*corev1.Service, error) {
	// Get first: creating one that exists fails in several ways, as its addresses
	// are taken too.
	api := c.client.CoreV1().Services(svc.Namespace)
	s := svc.DeepCopy()
	s.ResourceVersion = ""
	got, err := api.Get(ctx, svc.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		got, err = api.Create(ctx, s, metav1.CreateOptions{})
	case err == nil:
		s.ResourceVersion = got.ResourceVersion
		got, err = api.Update(ctx, s, metav1.UpdateOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("service %s/%s: put: %w", svc.Namespace, svc.Name, err)
	}
	return got, nil
}

// DeleteService deletes svc and its EndpointSlices; missing ones are fine.
func (c *Cluster) DeleteService(ctx context.Context, svc *corev1.Service) error {
	err := c.client.CoreV1().Services(svc.Namespace).Delete(ctx, svc.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("service %s/%s: delete: %w", svc.Namespace, svc.Name, err)
	}
	err = c.client.DiscoveryV1().EndpointSlices(svc.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{},
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + svc.Name})
	if err != nil {
		return fmt.Errorf("service %s/%s: delete endpointslices: %w", svc.Namespace, svc.Name, err)
	}
	return nil
}

// SetIngress makes addrs the load balancer addresses of svc, as a cloud would.
func (c *Cluster) SetIngress(ctx context.Context, svc *corev1.Service, addrs ...netip.Addr) (*corev1.Service, error) {
	api := c.client.CoreV1().Services(svc.Namespace)
	s, err := api.Get(ctx, svc.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("service %s/%s: get: %w", svc.Namespace, svc.Name, err)
	}
	s.Status.LoadBalancer.Ingress = nil
	for _, ip := range addrs {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip.String()})
	}
	if s, err = api.UpdateStatus(ctx, s, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("service %s/%s: set ingress: %w", svc.Namespace, svc.Name, err)
	}
	return s, nil
}

// NewEndpoint returns a ready endpoint on the node; tests may change its
// conditions, zone and hints.
func NewEndpoint(addr netip.Addr, node string) discoveryv1.Endpoint {
	yes, no := true, false
	return discoveryv1.Endpoint{
		Addresses:  []string{addr.String()},
		NodeName:   &node,
		Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
	}
}

// PutEndpoints makes eps the only endpoints of svc: one EndpointSlice for each
// family, named after svc, that may be empty. The ports are those of svc.
func (c *Cluster) PutEndpoints(ctx context.Context, svc *corev1.Service, eps ...discoveryv1.Endpoint) error {
	for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice, err := newSlice(svc, family, eps)
		if err != nil {
			return fmt.Errorf("service %s/%s: endpoints: %w", svc.Namespace, svc.Name, err)
		}
		if err := c.putSlice(ctx, slice); err != nil {
			return fmt.Errorf("endpointslice %s/%s: put: %w", slice.Namespace, slice.Name, err)
		}
	}
	return nil
}

// newSlice returns the EndpointSlice of svc with those of eps that are of the
// family.
func newSlice(svc *corev1.Service, family discoveryv1.AddressType, eps []discoveryv1.Endpoint) (*discoveryv1.EndpointSlice, error) {
	suffix := map[discoveryv1.AddressType]string{discoveryv1.AddressTypeIPv4: "-ipv4", discoveryv1.AddressTypeIPv6: "-ipv6"}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: svc.Namespace,
			Name:      svc.Name + suffix[family],
			Labels: map[string]string{
				discoveryv1.LabelServiceName: svc.Name,
				discoveryv1.LabelManagedBy:   "lbproxy-test",
			},
		},
		AddressType: family,
		Endpoints:   []discoveryv1.Endpoint{},
	}
	for _, p := range svc.Spec.Ports {
		target := p.TargetPort.IntVal
		if target == 0 {
			target = p.Port
		}
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &target})
	}
	for _, ep := range eps {
		addr, err := netip.ParseAddr(ep.Addresses[0])
		if err != nil {
			return nil, fmt.Errorf("address: %w", err)
		}
		if addr.Is6() == (family == discoveryv1.AddressTypeIPv6) {
			slice.Endpoints = append(slice.Endpoints, ep)
		}
	}
	return slice, nil
}

func (c *Cluster) putSlice(ctx context.Context, slice *discoveryv1.EndpointSlice) error {
	api := c.client.DiscoveryV1().EndpointSlices(slice.Namespace)
	_, err := put(
		func() (*discoveryv1.EndpointSlice, error) { return api.Create(ctx, slice, metav1.CreateOptions{}) },
		func() (*discoveryv1.EndpointSlice, error) { return api.Update(ctx, slice, metav1.UpdateOptions{}) })
	return err
}

// Node is what tests say about a Node.
type Node struct {
	Name     string
	Labels   map[string]string
	Addrs    []netip.Addr   // its InternalIPs
	PodCIDRs []netip.Prefix // one for each family, fixed once the Node exists
}

// PutNode creates the Node, or updates its labels and addresses.
func (c *Cluster) PutNode(ctx context.Context, n Node) (*corev1.Node, error) {
	obj := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels}}
	for _, p := range n.PodCIDRs {
		obj.Spec.PodCIDRs = append(obj.Spec.PodCIDRs, p.String())
	}
	if len(n.PodCIDRs) > 0 {
		obj.Spec.PodCIDR = n.PodCIDRs[0].String()
	}
	api := c.client.CoreV1().Nodes()
	got, err := put(
		func() (*corev1.Node, error) { return api.Create(ctx, obj, metav1.CreateOptions{}) },
		func() (*corev1.Node, error) { return api.Update(ctx, obj, metav1.UpdateOptions{}) })
	if err != nil {
		return nil, fmt.Errorf("node %s: put: %w", n.Name, err)
	}
	got.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: n.Name}}
	for _, ip := range n.Addrs {
		got.Status.Addresses = append(got.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	if got, err = api.UpdateStatus(ctx, got, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("node %s: status: %w", n.Name, err)
	}
	return got, nil
}

// put creates an object, or updates it if it exists.
func put[T any](create, update func() (T, error)) (T, error) {
	obj, err := create()
	if apierrors.IsAlreadyExists(err) {
		return update()
	}
	return obj, err
}
