// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// taintLeaving is on Nodes that will soon be deleted. Source: the cluster autoscaler.
const taintLeaving = "ToBeDeletedByClusterAutoscaler"

// node is what is kept of a v1.Node.
type node struct {
	name    string
	own     lb.Node // of every Node, though only the own one's matters
	weighed *weighed
}

// newNode returns a Node that is not there.
func newNode(name string) *node {
	return &node{name: name, weighed: &weighed{kind: KindNode, obj: lb.Object{Name: name}}}
}

// parseNode reads what matters of in.
func parseNode(in *v1.Node, o *Options) *node {
	return &node{in.Name, describe(in), weighNode(&in.ObjectMeta, o)}
}

// weighNode reads the weight of a Node.
func weighNode(in *metav1.ObjectMeta, o *Options) *weighed {
	n := newNode(in.Name).weighed
	n.uid = in.UID
	if !o.IgnoreNodeWeights {
		n.weight = readWeight(in.Annotations)
	}
	return n
}

// describe returns what in says as the own Node. Ranges that are none are left out.
func describe(in *v1.Node) lb.Node {
	n := lb.Node{
		Known: true, Addrs: primaryAddrs(in.Status.Addresses),
		Zone: in.Labels[v1.LabelTopologyZone], Leaving: in.DeletionTimestamp != nil,
	}
	cidrs := in.Spec.PodCIDRs
	if len(cidrs) == 0 && in.Spec.PodCIDR != "" {
		cidrs = []string{in.Spec.PodCIDR}
	}
	for _, text := range cidrs {
		if prefix, err := parsePrefix(text); err == nil {
			n.PodCIDRs = append(n.PodCIDRs, prefix)
		}
	}
	for _, t := range in.Spec.Taints {
		n.Leaving = n.Leaving || t.Key == taintLeaving
	}
	return n
}

// primaryAddrs returns the first InternalIP of each family, or its first ExternalIP if
// it has none of those. Addresses that are none are left out.
// Source: what kube-proxy takes for its node's addresses.
func primaryAddrs(from []v1.NodeAddress) (addrs []netip.Addr) {
	for _, typ := range []v1.NodeAddressType{v1.NodeInternalIP, v1.NodeExternalIP} {
		for _, a := range from {
			addr, err := parseIP(a.Address)
			same := func(b netip.Addr) bool { return lb.FamilyOf(b) == lb.FamilyOf(addr) }
			if a.Type == typ && err == nil && !slices.ContainsFunc(addrs, same) {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs
}

// Node returns what the own Node says now, or what it said last, and that it is not
// known, when it is gone.
func (s *Store) Node() lb.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node
}

// The following methods of Store are called with s.mu held.

// putNode takes over the weight of a Node, and all else of the own one.
func (s *Store) putNode(n *node) {
	s.putWeighed(n.weighed)
	s.putOwnNode(n)
}

// putOwnNode takes over the own Node; another one is passed over.
func (s *Store) putOwnNode(n *node) {
	if n.name == s.opts.NodeName {
		s.setNode(n.own)
	}
}

// setNode makes n the own Node. What depends on what changed is resolved again:
// everything on the zone, source ranges on the addresses.
func (s *Store) setNode(n lb.Node) {
	old := s.node
	n = s.remember(n)
	if n.Equal(old) {
		return
	}
	s.node = n
	s.announceNode()
	zone, addrs := n.Zone != old.Zone, !slices.Equal(n.Addrs, old.Addrs)
	if !zone && !addrs {
		return
	}
	for _, e := range s.entries {
		if zone || e.svc != nil && e.svc.extras.dependsOnAddresses() {
			s.touch(e)
		}
	}
}

// remember returns what is to be taken for the own Node when n is what there is. The
// machine is still there when its Node is deleted, and so is what it serves: only
// Known changes. A Node that comes back is filled in step by step, by others: what it
// has not said since is what it said before.
func (s *Store) remember(n lb.Node) lb.Node {
	if !n.Known {
		s.lastNode = s.node
		n = s.node
		n.Known = false
		return n
	}
	last := &s.lastNode
	n.Addrs, last.Addrs = either(n.Addrs, last.Addrs)
	n.PodCIDRs, last.PodCIDRs = either(n.PodCIDRs, last.PodCIDRs)
	if n.Zone == "" {
		n.Zone = last.Zone
	} else {
		last.Zone = ""
	}
	return n
}

// either returns what is said, or else what was said before; and what that is the
// next time.
func either[T any](said, before []T) (now, next []T) {
	if len(said) > 0 {
		return said, nil
	}
	return before, before
}

// announceNode lets OnNode be told when the lock is free.
func (s *Store) announceNode() {
	s.announced = true
	s.nodeNews = s.opts.OnNode != nil
}

// replaceNodeWeights makes list the Nodes that have a weight.
func (s *Store) replaceNodeWeights(list []*weighed) { s.replaceWeighed(KindNode, list) }

// replaceOwnNode makes list, which should have one, the Nodes of our name.
func (s *Store) replaceOwnNode(list []*node) {
	own := newNode(s.opts.NodeName)
	for _, n := range list {
		if n.name == own.name {
			own = n
		}
	}
	s.putOwnNode(own)
}

// tellNode tells OnNode the news, if there are some. Of several goroutines that have
// news one tells them, so the last that is told is the last there was. s.mu is not held.
func (s *Store) tellNode() {
	for {
		s.mu.Lock()
		if s.telling || !s.nodeNews {
			s.mu.Unlock()
			return
		}
		s.telling, s.nodeNews = true, false
		n := s.node
		s.mu.Unlock()
		s.opts.OnNode(n)
		s.mu.Lock()
		s.telling = false
		s.mu.Unlock()
	}
}
