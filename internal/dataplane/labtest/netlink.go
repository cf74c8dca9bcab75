// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// Narrow makes a host's routes through a device narrower than the device: a link in the
// middle of which neither end knows. (A device with a smaller MTU than its peer's would
// drop the peer's packets without a word.)
func Narrow(t *testing.T, host *lab.Host, device string, mtu int) {
	t.Helper()
	err := host.Do(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteList(l, family)
			for errors.Is(err, netlink.ErrDumpInterrupted) && t.Context().Err() == nil {
				routes, err = netlink.RouteList(l, family) // it changed meanwhile
			}
			if err != nil {
				return err
			}
			for _, route := range routes {
				if ones, bits := route.Dst.Mask.Size(); ones != bits {
					continue // only the pod's own
				}
				route.MTU, route.MTULock = mtu, true
				if err := netlink.RouteReplace(&route); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("narrow routes through %s: %v", device, err)
	}
}
