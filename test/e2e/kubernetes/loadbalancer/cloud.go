// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cloudprovider "k8s.io/cloud-provider"
)

// cloud is a cloudprovider.Interface that has load balancers and nothing else.
type cloud struct {
	pools map[v1.IPFamily]netip.Prefix

	mu        sync.Mutex
	balancers map[types.UID]*balancer
	used      map[netip.Addr]bool
}

// balancer is what one Service has.
type balancer struct {
	addrs map[v1.IPFamily]netip.Addr
	nodes map[v1.IPFamily][]string
	// health is the port that says whether a node has endpoints; 0: any node will do.
	health int32
	// single sends all to one node: session affinity is remembered by each node alone.
	single bool
	routes map[netip.Addr][]string // the next hops in the kernel
}

func newCloud(pools map[v1.IPFamily]netip.Prefix) *cloud {
	return &cloud{pools: pools, balancers: map[types.UID]*balancer{}, used: map[netip.Addr]bool{}}
}

// EnsureLoadBalancer gives svc its addresses and routes them to nodes.
func (c *cloud) EnsureLoadBalancer(_ context.Context, _ string, svc *v1.Service, nodes []*v1.Node) (*v1.LoadBalancerStatus, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.balancers[svc.UID]
	if b == nil {
		b = &balancer{addrs: map[v1.IPFamily]netip.Addr{}, routes: map[netip.Addr][]string{}}
		c.balancers[svc.UID] = b
	}
	for _, family := range svc.Spec.IPFamilies {
		if b.addrs[family].IsValid() {
			continue
		}
		addr, err := c.allocate(c.pools[family], svc)
		if err != nil {
			return nil, err
		}
		b.addrs[family] = addr
	}
	b.nodes = internalAddresses(nodes)
	b.single = svc.Spec.SessionAffinity == v1.ServiceAffinityClientIP
	b.health = 0
	if svc.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal {
		b.health = svc.Spec.HealthCheckNodePort
	}
	b.program()
	return b.status(svc), nil
}

// allocate takes an address of pool: what svc asks for or had before, or the first.
func (c *cloud) allocate(pool netip.Prefix, svc *v1.Service) (netip.Addr, error) {
	wanted := []string{svc.Spec.LoadBalancerIP}
	for _, in := range svc.Status.LoadBalancer.Ingress { // from before a restart
		wanted = append(wanted, in.IP)
	}
	for _, s := range wanted {
		if addr, err := netip.ParseAddr(s); err == nil && pool.Contains(addr) && !c.used[addr] {
			c.used[addr] = true
			return addr, nil
		}
	}
	for addr := pool.Addr().Next(); pool.Contains(addr); addr = addr.Next() {
		if !c.used[addr] {
			c.used[addr] = true
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address of %v is free", pool)
}

func internalAddresses(nodes []*v1.Node) map[v1.IPFamily][]string {
	by := map[v1.IPFamily][]string{}
	for _, node := range nodes {
		for _, a := range node.Status.Addresses {
			addr, err := netip.ParseAddr(a.Address)
			if a.Type != v1.NodeInternalIP || err != nil {
				continue
			}
			family := v1.IPv4Protocol
			if addr.Is6() {
				family = v1.IPv6Protocol
			}
			by[family] = append(by[family], a.Address)
		}
	}
	for _, addrs := range by {
		slices.Sort(addrs)
	}
	return by
}

func (b *balancer) status(svc *v1.Service) *v1.LoadBalancerStatus {
	mode := v1.LoadBalancerIPModeVIP
	status := &v1.LoadBalancerStatus{}
	for _, family := range svc.Spec.IPFamilies {
		if addr := b.addrs[family]; addr.IsValid() {
			status.Ingress = append(status.Ingress, v1.LoadBalancerIngress{IP: addr.String(), IPMode: &mode})
		}
	}
	return status
}

// EnsureLoadBalancerDeleted takes the addresses of svc back.
func (c *cloud) EnsureLoadBalancerDeleted(_ context.Context, _ string, svc *v1.Service) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.balancers[svc.UID]
	if b == nil {
		return nil
	}
	for _, addr := range b.addrs {
		unroute(addr)
		delete(c.used, addr)
	}
	delete(c.balancers, svc.UID)
	return nil
}

// GetLoadBalancer returns what svc has.
func (c *cloud) GetLoadBalancer(_ context.Context, _ string, svc *v1.Service) (*v1.LoadBalancerStatus, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.balancers[svc.UID]; b != nil {
		return b.status(svc), true, nil
	}
	return nil, false, nil
}

// UpdateLoadBalancer is called when the nodes change.
func (c *cloud) UpdateLoadBalancer(ctx context.Context, name string, svc *v1.Service, nodes []*v1.Node) error {
	_, err := c.EnsureLoadBalancer(ctx, name, svc, nodes)
	return err
}

// GetLoadBalancerName returns a name for messages.
func (c *cloud) GetLoadBalancerName(_ context.Context, _ string, svc *v1.Service) string {
	return svc.Namespace + "/" + svc.Name
}

// The rest of cloudprovider.Interface.

func (c *cloud) Initialize(cloudprovider.ControllerClientBuilder, <-chan struct{}) {}
func (c *cloud) LoadBalancer() (cloudprovider.LoadBalancer, bool)                  { return c, true }
func (c *cloud) Instances() (cloudprovider.Instances, bool)                        { return nil, false }
func (c *cloud) InstancesV2() (cloudprovider.InstancesV2, bool)                    { return nil, false }
func (c *cloud) Zones() (cloudprovider.Zones, bool)                                { return nil, false }
func (c *cloud) Clusters() (cloudprovider.Clusters, bool)                          { return nil, false }
func (c *cloud) Routes() (cloudprovider.Routes, bool)                              { return nil, false }
func (c *cloud) ProviderName() string                                              { return "lab" }
func (c *cloud) HasClusterID() bool                                                { return true }
