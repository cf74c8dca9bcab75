// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The blocks of a clsact qdisc.
const (
	clsactIngress = netlink.HANDLE_MIN_INGRESS
	clsactEgress  = netlink.HANDLE_MIN_EGRESS
)

// Filters of lbproxy are known by these.
const (
	filterName     = "lbproxy"
	filterPriority = 0x4c42 // "LB": leaves room for others before and after
	filterHandle   = 1
)

func clsactFilter(h deviceHook, ifindex int, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex,
			Parent:    h.parent,
			Handle:    filterHandle,
			Priority:  filterPriority,
			Protocol:  unix.ETH_P_ALL,
		},
		Fd:           fd,
		Name:         filterName,
		DirectAction: true,
	}
}

// attachClsact attaches prog by a filter, replacing the one that is there.
func attachClsact(h deviceHook, ifindex int, prog *ebpf.Program) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	if err := netlink.FilterReplace(clsactFilter(h, ifindex, prog.FD())); err != nil {
		return fmt.Errorf("replace clsact filter: %w", err)
	}
	return nil
}

// detachClsact removes lbproxy's filters from a device; the qdisc stays, others
// may use it. It says whether there were any.
func detachClsact(ifindex int) (bool, error) {
	found := false
	var errs []error
	for _, h := range deviceHooks {
		filters, err := filterList(ifindex, h.parent)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, f := range filters {
			if bf, ok := f.(*netlink.BpfFilter); ok && bf.Name == filterName {
				found = true
				errs = append(errs, netlink.FilterDel(f))
			}
		}
	}
	return found, errors.Join(errs...)
}
