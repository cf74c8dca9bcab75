// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// attached counts programs on the lab's cgroup and on the node's devices. On
// kernels without tcx it counts none on devices.
func (r *rig) attached() (n int, err error) {
	cgroup, err := os.Open(r.lab.CgroupRoot())
	if err != nil {
		return 0, err
	}
	defer cgroup.Close()
	for _, hook := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
		ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
		ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg,
		ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
		ebpf.AttachCgroupInetSockRelease, ebpf.AttachCGroupSockOps,
	} {
		res, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: hook})
		if err != nil {
			return 0, fmt.Errorf("cgroup, %s: %w", hook, err)
		}
		n += len(res.Programs)
	}
	err = r.lab.Host(lab.Node).Do(func() error {
		devices, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, dev := range devices {
			more, err := onDevice(dev)
			if err != nil {
				return err
			}
			n += more
		}
		return nil
	})
	return n, err
}

// onDevice counts programs on a device of the thread's network namespace.
func onDevice(dev net.Interface) (n int, err error) {
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		res, err := link.QueryPrograms(link.QueryOptions{Target: dev.Index, Attach: hook})
		switch {
		case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, os.ErrNotExist):
		case err != nil:
			return n, fmt.Errorf("device %s, %s: %w", dev.Name, hook, err)
		default:
			n += len(res.Programs)
		}
	}
	return n, nil
}

// nothingLeft checks that the kernel has no pin and no program of lbproxy.
func (r *rig) nothingLeft() {
	r.t.Helper()
	if _, err := os.Stat(r.pins()); !errors.Is(err, os.ErrNotExist) {
		r.t.Errorf("%s: %v, want that it does not exist", r.pins(), err)
	}
	eventually(r.t, "no program is attached", func() bool { // the kernel detaches soon after the last user
		n, err := r.attached()
		if err != nil {
			r.t.Fatal(err)
		}
		return n == 0
	})
}

// pins is the directory of everything that lbproxy keeps in the bpffs.
func (r *rig) pins() string { return filepath.Join(r.lab.BPFFS(), "lbproxy") }
