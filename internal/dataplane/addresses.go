// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"sync/atomic"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Addresses are which addresses count on a node: at first those of a Dataplane's options,
// then what an AddressSetter was told. Set may be called from any goroutine.
type Addresses struct {
	local     lb.LocalDetector
	nodePorts lb.NodePortAddresses
	told      atomic.Pointer[toldAddresses] // nil: nothing
}

type toldAddresses struct {
	pods      []netip.Prefix
	nodePorts lb.NodePortAddresses
}

// NewAddresses returns those of options.
func NewAddresses(local lb.LocalDetector, nodePorts lb.NodePortAddresses) *Addresses {
	return &Addresses{local: local, nodePorts: nodePorts}
}

// Set takes others from now on.
func (a *Addresses) Set(pods []netip.Prefix, nodePorts lb.NodePortAddresses) {
	a.told.Store(&toldAddresses{pods, nodePorts})
}

// Local returns how callers that are pods are told from others.
func (a *Addresses) Local() lb.LocalDetector {
	local := a.local
	if told := a.told.Load(); told != nil && local.Mode == lb.LocalClusterCIDR {
		local.Ranges = told.pods
	}
	return local
}

// NodePorts returns where NodePorts answer.
func (a *Addresses) NodePorts() lb.NodePortAddresses {
	if told := a.told.Load(); told != nil {
		return told.nodePorts
	}
	return a.nodePorts
}
