// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"encoding/binary"
	"errors"
	"net"

	"github.com/vishvananda/netlink"
)

// dumpTries is how often a dump is repeated that changed while it was read.
const dumpTries = 10

// dump repeats a netlink listing that was interrupted by a change: what such a
// listing returns may lack entries. Every listing goes through here.
func dump[T any](list func() ([]T, error)) (got []T, err error) {
	for range dumpTries {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
	}
	return nil, err
}

func linkList() ([]netlink.Link, error) {
	return dump(netlink.LinkList)
}

func addrList() ([]netlink.Addr, error) {
	return dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
}

func filterList(ifindex int, parent uint32) ([]netlink.Filter, error) {
	dev := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	return dump(func() ([]netlink.Filter, error) { return netlink.FilterList(dev, parent) })
}

// routeList returns the routes of the main table, through a device if one is given.
func routeList(dev netlink.Link, family int) ([]netlink.Route, error) {
	return dump(func() ([]netlink.Route, error) { return netlink.RouteList(dev, family) })
}

// defaultDevices returns the devices of the default routes.
func defaultDevices() (map[int]bool, error) {
	routes, err := routeList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	devs := map[int]bool{}
	for _, r := range routes {
		if isDefault(r.Dst) {
			devs[r.LinkIndex] = true
		}
	}
	return devs, nil
}

func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}

func nativeUint64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
