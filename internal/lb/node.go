// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"slices"
	"strings"
)

// Node is what matters of a Node object: the own one.
type Node struct {
	Known    bool           // the object exists
	Addrs    []netip.Addr   // its primary ones: of status.addresses, at most one of a family
	PodCIDRs []netip.Prefix // of spec.podCIDRs
	Zone     string         // of label topology.kubernetes.io/zone
	Leaving  bool           // it is being deleted, or is about to be: nothing new should be sent to it
}

// Equal tells whether n and o say the same.
func (n Node) Equal(o Node) bool {
	return n.Known == o.Known && n.Zone == o.Zone && n.Leaving == o.Leaving &&
		slices.Equal(n.Addrs, o.Addrs) && slices.Equal(n.PodCIDRs, o.PodCIDRs)
}

// NodePortAddresses says at which addresses of the node NodePorts are served. The
// zero value is at all. A family for which nothing is said is served at all of its
// addresses, as kube-proxy has it.
type NodePortAddresses struct {
	Ranges  []netip.Prefix
	Primary bool // at those of the Node object, too
}

// Serves tells whether NodePorts are served at addr of node. Loopback addresses
// count as any other.
func (a NodePortAddresses) Serves(addr netip.Addr, node Node) bool {
	said := false
	for _, p := range a.Ranges {
		if FamilyOf(p.Addr()) == FamilyOf(addr) {
			said = true
			if p.Contains(addr) {
				return true
			}
		}
	}
	if a.Primary {
		for _, n := range node.Addrs {
			if FamilyOf(n) == FamilyOf(addr) {
				said = true
				if n == addr {
					return true
				}
			}
		}
	}
	return !said
}

// LocalMode is how callers that are pods are told from others.
type LocalMode uint8

// The modes, as kube-proxy has them.
const (
	LocalNone                LocalMode = iota // nobody is known as a pod
	LocalClusterCIDR                          // by address: ranges of the configuration
	LocalNodeCIDR                             // by address: the Node's pod ranges
	LocalBridgeInterface                      // by the bridge that their packets come from
	LocalInterfaceNamePrefix                  // by the name of the device that their packets come from
)

var localModes = [...]string{"", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"}

// String returns the spelling of --detect-local-mode.
func (m LocalMode) String() string { return localModes[m] }

// ParseLocalMode is the inverse of String.
func ParseLocalMode(text string) (LocalMode, bool) {
	i := slices.Index(localModes[:], text)
	return LocalMode(max(i, 0)), i > 0
}

// LocalDetector tells callers that are pods from others.
type LocalDetector struct {
	Mode      LocalMode
	Ranges    []netip.Prefix // of LocalClusterCIDR
	Interface string         // of LocalBridgeInterface, and the prefix of LocalInterfaceNamePrefix
}

// Detects tells whether the configuration says who is a pod; see Knows for what
// follows from it.
func (d LocalDetector) Detects() bool {
	return d.Mode != LocalNone && (d.Mode != LocalClusterCIDR || len(d.Ranges) > 0)
}

// Knows tells whether callers of family f that are pods can be known on node. If not,
// nobody of that family is masqueraded for being none.
func (d LocalDetector) Knows(f Family, node Node) bool {
	switch d.Mode {
	case LocalClusterCIDR, LocalNodeCIDR:
		return slices.ContainsFunc(d.PodRanges(node), func(p netip.Prefix) bool { return FamilyOf(p.Addr()) == f })
	case LocalBridgeInterface, LocalInterfaceNamePrefix:
		return true
	case LocalNone:
	}
	return false
}

// PodRanges returns whose addresses are pods on node; none when that is told by devices.
func (d LocalDetector) PodRanges(node Node) []netip.Prefix {
	switch d.Mode {
	case LocalClusterCIDR:
		return d.Ranges
	case LocalNodeCIDR:
		return node.PodCIDRs
	case LocalNone, LocalBridgeInterface, LocalInterfaceNamePrefix:
	}
	return nil
}

// PodDevice tells whether packets that come from a device are those of pods; master
// is the name of the bridge it belongs to, if any.
func (d LocalDetector) PodDevice(name, master string) bool {
	switch d.Mode {
	case LocalBridgeInterface:
		return name == d.Interface || master == d.Interface
	case LocalInterfaceNamePrefix:
		return strings.HasPrefix(name, d.Interface) || master != "" && strings.HasPrefix(master, d.Interface)
	case LocalNone, LocalClusterCIDR, LocalNodeCIDR:
	}
	return false
}
