// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	deviceSettle = 10 * time.Millisecond // a burst of netlink events is one look
	deviceRescan = 30 * time.Second      // and one is taken without any
)

// device is what lbproxy needs to know of a network device.
type device struct {
	index int
	name  string
	hasL2 bool // packets start with an Ethernet header
}

// nodeNet is the node's devices and addresses at one time.
type nodeNet struct {
	devices []device
	addrs   []nodeAddr
	uplinks map[int]bool   // devices of default routes
	masters map[int]string // the bridges that devices belong to
}

type nodeAddr struct {
	ifindex   int
	addr      netip.Addr
	secondary bool
}

// followDevices keeps programs on every device, and the tables of addresses
// right, until ctx is done.
func (d *Dataplane) followDevices(ctx context.Context) error {
	for {
		events, err := subscribe(ctx)
		if err != nil {
			return fmt.Errorf("follow network devices: %w", err)
		}
		for open := true; open; {
			wait := deviceRescan
			if err := d.lookAtDevices(); err != nil {
				d.opts.Log.Debug("network devices change while they are listed; looking again", "error", err)
				wait = deviceSettle
			}
			open = waitForEvent(ctx, events, d.look, wait)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// lookAtDevices makes the kernel's programs and tables fit the node's network as
// it is now. A device that fails is tried again at the next look; an error means
// that nothing could be seen.
func (d *Dataplane) lookAtDevices() error {
	net, err := readNodeNet()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return err
	}
	if err != nil {
		d.opts.Log.Warn("network devices cannot be listed", "error", err)
		return nil
	}
	d.syncSettings()
	if err := errors.Join(d.syncAddrs(net), d.syncPodRanges()); err != nil {
		d.opts.Log.Warn("node addresses cannot be stored", "error", err)
	}
	d.attachDevices(net.devices)
	return nil
}

func (d *Dataplane) attachDevices(devices []device) {
	present := map[int]bool{}
	for _, dev := range devices {
		if !d.wantsDevice(dev.name) {
			continue
		}
		present[dev.index] = true
		if d.attached[dev.index] == dev {
			continue
		}
		err := d.attachDevice(dev.index, dev.hasL2)
		switch {
		case errors.Is(err, unix.ENODEV): // gone since it was listed, perhaps between two hooks
			if err := d.detachDevice(dev.index); err != nil {
				d.opts.Log.Warn("pin of a device that is gone stays", "device", dev.name, "error", err)
			}
		case err != nil:
			d.opts.Log.Warn("device is not served", "device", dev.name, "error", err)
		default:
			d.attached[dev.index] = dev
			d.opts.Log.Debug("device is served", "device", dev.name)
		}
	}
	for index, dev := range d.attached {
		if present[index] {
			continue
		}
		if err := d.detachDevice(index); err != nil {
			d.opts.Log.Warn("pin of a device that is gone stays", "device", dev.name, "error", err)
		}
		delete(d.attached, index)
	}
}

func (d *Dataplane) wantsDevice(name string) bool {
	if len(d.opts.Devices) == 0 {
		return true
	}
	return slices.ContainsFunc(d.opts.Devices, func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return ok && err == nil
	})
}

// syncAddrs stores at which addresses NodePorts answer, and which source address
// masqueraded packets get on each device.
func (d *Dataplane) syncAddrs(net *nodeNet) error {
	sources := map[uint32]lbDevice{}
	for _, dev := range net.devices {
		var v lbDevice
		if d.addrs.Local().PodDevice(dev.name, net.masters[dev.index]) {
			v.Pods = 1
		}
		if a := net.source(dev.index, true); a.IsValid() {
			v.V4 = addrOf(a)
		}
		if a := net.source(dev.index, false); a.IsValid() {
			v.V6 = addrOf(a)
		}
		sources[uint32(dev.index)] = v
	}
	return errors.Join(d.syncNodePorts(net), syncTable(d.maps, d.maps.byName[lbMapDevices], sources))
}

// syncNodePorts stores at which addresses NodePorts answer.
func (d *Dataplane) syncNodePorts(net *nodeNet) error {
	node, told := d.knownNode()
	if !told && d.addrs.NodePorts().Primary {
		return nil
	}
	ports := map[lbAddr]uint32{}
	var named, others []lbAddr // by the Node object, which are those that clients know
	for _, a := range net.addrs {
		if !d.addrs.NodePorts().Serves(a.addr, node) {
			continue
		}
		key := addrOf(a.addr)
		ports[key] = 1
		if slices.Contains(node.Addrs, a.addr) {
			named = append(named, key)
		} else {
			others = append(others, key)
		}
	}
	return syncTable(d.maps, d.maps.byName[lbMapNodeAddrs], ports, append(named, others...)...)
}

// source returns the address from which packets leave through a device: its own
// oldest one, else the oldest of an uplink, else the node's oldest. The kernel
// lists IPv4 addresses in the order they were added, IPv6 addresses newest first.
func (n *nodeNet) source(ifindex int, v4 bool) netip.Addr {
	rank := func(a nodeAddr) int {
		switch {
		case a.ifindex == ifindex && !a.secondary:
			return 0
		case n.uplinks[a.ifindex] && !a.secondary:
			return 1
		case !a.secondary:
			return 2
		}
		return 3
	}
	var best nodeAddr
	for _, a := range n.addrs {
		if a.addr.Is4() != v4 {
			continue
		}
		if r := cmp.Compare(rank(a), rank(best)); !best.addr.IsValid() || r < 0 || r == 0 && !v4 && a.ifindex == best.ifindex {
			best = a
		}
	}
	return best.addr
}

// readNodeNet lists devices, addresses and default routes. Loopback and
// link-local addresses are left out.
func readNodeNet() (*nodeNet, error) {
	links, err := linkList()
	if err != nil {
		return nil, err
	}
	addrs, err := addrList()
	if err != nil {
		return nil, err
	}
	n := &nodeNet{masters: masters(links)}
	if n.uplinks, err = defaultDevices(); err != nil {
		return nil, err
	}
	for _, l := range links {
		if a := l.Attrs(); a.RawFlags&unix.IFF_LOOPBACK == 0 {
			n.devices = append(n.devices, device{a.Index, a.Name, a.EncapType == "ether"})
		}
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
			continue
		}
		n.addrs = append(n.addrs, nodeAddr{a.LinkIndex, ip, a.Flags&unix.IFA_F_SECONDARY != 0})
	}
	slices.SortStableFunc(n.addrs, func(a, b nodeAddr) int { return cmp.Compare(a.ifindex, b.ifindex) })
	return n, nil
}

// masters returns the names of the bridges that devices belong to, by device.
func masters(links []netlink.Link) map[int]string {
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	of := map[int]string{}
	for _, l := range links {
		if a := l.Attrs(); a.MasterIndex != 0 {
			of[a.Index] = names[a.MasterIndex]
		}
	}
	return of
}

// subscribe returns a channel that gets a value after devices or addresses have
// changed. It is closed when events were lost or ctx is done; then the caller
// subscribes again and looks.
func subscribe(ctx context.Context) (<-chan struct{}, error) {
	links := make(chan netlink.LinkUpdate, 64)
	addrs := make(chan netlink.AddrUpdate, 64)
	done := make(chan struct{})
	ignore := func(error) {} // the closed channel tells
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: ignore}); err != nil {
		return nil, err
	}
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: ignore}); err != nil {
		close(done)
		return nil, err
	}
	events := make(chan struct{}, 1)
	go func() {
		defer close(events)
		defer close(done)
		for {
			var ok bool
			select {
			case <-ctx.Done():
				return
			case _, ok = <-links:
			case _, ok = <-addrs:
			}
			if !ok {
				return
			}
			select {
			case events <- struct{}{}:
			default:
			}
		}
	}()
	return events, nil
}

// waitForEvent waits until it is worth looking again, at most for a time. It
// returns false when events is closed.
func waitForEvent(ctx context.Context, events, look <-chan struct{}, most time.Duration) bool {
	rescan := time.NewTimer(most)
	defer rescan.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-rescan.C:
		return true
	case <-look:
		return true
	case _, ok := <-events:
		if !ok {
			return false
		}
	}
	settle := time.NewTimer(deviceSettle)
	defer settle.Stop()
	select {
	case <-ctx.Done():
	case <-settle.C:
	}
	return true
}
