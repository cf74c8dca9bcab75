// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// nodeAddrs returns the addresses of the calling thread's network namespace.
func nodeAddrs(f lb.Family) (addrs []netip.Addr, err error) {
	family := netlink.FAMILY_V4
	if f == lb.IPv6 {
		family = netlink.FAMILY_V6
	}
	var list []netlink.Addr
	for range dumpTries {
		if list, err = netlink.AddrList(nil, family); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("addresses of the node: %w", err)
	}
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs, nil
}
