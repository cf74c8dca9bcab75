// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// addresses are what SetAddresses told.
type addresses struct {
	pods      []netip.Prefix
	nodePorts lb.NodePortAddresses
}

// SetAddresses tells other addresses than those of Options. Run takes them over.
func (d *Dataplane) SetAddresses(pods []netip.Prefix, nodePorts lb.NodePortAddresses) {
	d.addrs.Store(&addresses{pods, nodePorts})
	d.lookAgain()
}

var _ dataplane.AddressSetter = (*Dataplane)(nil)

// local returns how callers that are pods are told from others.
func (d *Dataplane) local() lb.LocalDetector {
	local := d.opts.Local
	if a := d.addrs.Load(); a != nil && local.Mode == lb.LocalClusterCIDR {
		local.Ranges = a.pods
	}
	return local
}

// nodePorts returns where NodePorts answer.
func (d *Dataplane) nodePorts() lb.NodePortAddresses {
	if a := d.addrs.Load(); a != nil {
		return a.nodePorts
	}
	return d.opts.NodePorts
}
