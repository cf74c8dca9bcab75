// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// cgroupHooks are the socket programs and where they attach.
var cgroupHooks = map[string]ebpf.AttachType{
	sockProgLbConnect4:     ebpf.AttachCGroupInet4Connect,
	sockProgLbConnect6:     ebpf.AttachCGroupInet6Connect,
	sockProgLbSendmsg4:     ebpf.AttachCGroupUDP4Sendmsg,
	sockProgLbSendmsg6:     ebpf.AttachCGroupUDP6Sendmsg,
	sockProgLbRecvmsg4:     ebpf.AttachCGroupUDP4Recvmsg,
	sockProgLbRecvmsg6:     ebpf.AttachCGroupUDP6Recvmsg,
	sockProgLbGetpeername4: ebpf.AttachCgroupInet4GetPeername,
	sockProgLbGetpeername6: ebpf.AttachCgroupInet6GetPeername,
	sockProgLbSockRelease:  ebpf.AttachCgroupInetSockRelease,
	sockProgLbSockOps:      ebpf.AttachCGroupSockOps,
}

// linkPath is where the link of a name is pinned.
func (d *Dataplane) linkPath(name string) string {
	return filepath.Join(d.maps.dir, "links", name)
}

// attachCgroup attaches the socket programs, each in one step: a program that an
// earlier agent attached to the same cgroup is replaced, not removed first.
// Those that undo or count go before those that translate.
func (d *Dataplane) attachCgroup() error {
	order := []string{
		sockProgLbSockRelease, sockProgLbSockOps, sockProgLbGetpeername4, sockProgLbGetpeername6,
		sockProgLbRecvmsg4, sockProgLbRecvmsg6, sockProgLbSendmsg4, sockProgLbSendmsg6,
		sockProgLbConnect4, sockProgLbConnect6,
	}
	id, err := cgroupID(d.opts.CgroupRoot)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", d.opts.CgroupRoot, err)
	}
	for _, name := range order {
		if err := d.attachCgroupProgram(name, id); err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", name, d.opts.CgroupRoot, err)
		}
	}
	return nil
}

func (d *Dataplane) attachCgroupProgram(name string, cgroup uint64) error {
	path := d.linkPath(name)
	old, err := link.LoadPinnedLink(path, nil)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return fmt.Errorf("open pinned link: %w", err)
	default:
		defer old.Close()
		if onCgroup(old, cgroup) {
			return old.Update(d.progs[name])
		}
		if err := old.Unpin(); err != nil { // another or a deleted cgroup
			return fmt.Errorf("unpin link: %w", err)
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{
		Path:    d.opts.CgroupRoot,
		Attach:  cgroupHooks[name],
		Program: d.progs[name],
	})
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Pin(path)
}

// cgroupID returns the kernel's number of a cgroup.
func cgroupID(dir string) (uint64, error) {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil {
		return 0, err
	}
	b := h.Bytes()
	if len(b) != 8 {
		return 0, fmt.Errorf("file handle of %d bytes: want 8", len(b))
	}
	return nativeUint64(b), nil
}

// onCgroup says whether a link is attached to a cgroup that still exists.
func onCgroup(l link.Link, id uint64) bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	c := info.Cgroup()
	return c != nil && c.CgroupId == id
}

// deviceHook is one of the two hooks of a device.
type deviceHook struct {
	suffix string // of the pinned link's name
	attach ebpf.AttachType
	parent uint32 // handle of the clsact qdisc's block
	l2, l3 string // programs, for devices with and without an Ethernet header
}

var deviceHooks = []deviceHook{
	// Egress first: a connection that ingress accepts needs it for the reply.
	{"egress", ebpf.AttachTCXEgress, clsactEgress, lbProgLbEgress, lbProgLbEgressL3},
	{"ingress", ebpf.AttachTCXIngress, clsactIngress, lbProgLbIngress, lbProgLbIngressL3},
}

// program returns a hook's program for a device.
func (d *Dataplane) program(h deviceHook, hasL2 bool) (_ *ebpf.Program, err error) {
	if hasL2 {
		return d.progs[h.l2], nil
	}
	if d.layer3 == nil {
		if d.layer3, err = loadLayer3(d.maps, d.opts.Local); err != nil {
			d.layer3 = nil // tried again at the next look
		}
	}
	return d.layer3[h.l3], err
}

// linkName is the name of a device's pinned link.
func (h deviceHook) linkName(ifindex int) string { return fmt.Sprintf("tcx-%d-%s", ifindex, h.suffix) }

// attachDevice attaches both hooks of a device, by tcx where the kernel has it
// (6.6), by a clsact filter otherwise.
func (d *Dataplane) attachDevice(ifindex int, hasL2 bool) error {
	for _, h := range deviceHooks {
		prog, err := d.program(h, hasL2)
		if err != nil {
			return err
		}
		err = d.attachTCX(h, ifindex, prog)
		if errors.Is(err, ebpf.ErrNotSupported) {
			err = attachClsact(h, ifindex, prog)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.suffix, err)
		}
	}
	return nil
}

// attachTCX attaches prog by a pinned link, or updates the link that is there.
func (d *Dataplane) attachTCX(h deviceHook, ifindex int, prog *ebpf.Program) error {
	path := d.linkPath(h.linkName(ifindex))
	old, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		defer old.Close()
		info, err := old.Info()
		if err == nil && info.TCX() != nil && int(info.TCX().Ifindex) == ifindex {
			return old.Update(prog)
		}
		if err := old.Unpin(); err != nil { // of a device that is gone
			return fmt.Errorf("unpin link: %w", err)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open pinned link: %w", err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: h.attach})
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Pin(path)
}

// pinnedDevices returns the devices that an earlier agent served.
func (d *Dataplane) pinnedDevices() (map[int]device, error) {
	links, err := os.ReadDir(d.linkPath(""))
	if err != nil {
		return nil, err
	}
	devs := map[int]device{}
	for _, l := range links {
		var index int
		if _, err := fmt.Sscanf(l.Name(), "tcx-%d-", &index); err == nil {
			devs[index] = device{index: index}
		}
	}
	return devs, nil
}

// detachDevice removes what attachDevice made. From a device that is gone the
// kernel has detached it already.
func (d *Dataplane) detachDevice(ifindex int) error {
	var errs []error
	if _, err := detachClsact(ifindex); err != nil && !errors.Is(err, unix.ENODEV) {
		errs = append(errs, err)
	}
	for _, h := range deviceHooks {
		err := os.Remove(d.linkPath(h.linkName(ifindex)))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
