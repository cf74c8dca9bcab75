// SPDX-License-Identifier: Apache-2.0

//go:build root

package smoke

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestRelease(t *testing.T) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	t.Logf("kernel %s", release)
	if want := os.Getenv("LBPROXY_VM"); want != "" && release != want {
		t.Errorf("release %q, the harness booted %q", release, want)
	}
}

func TestBTF(t *testing.T) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatalf("kernel BTF: %v", err)
	}
	for _, name := range []string{"__sk_buff", "bpf_sock_addr", "sock", "tcp_sock"} {
		var s *btf.Struct
		if err := spec.TypeByName(name, &s); err != nil {
			t.Errorf("struct %s: %v", name, err)
		}
	}
}

// TestConnectHook attaches a connect4 program that refuses every connection to
// a new cgroup, and sees connect fail inside it and only there.
func TestConnectHook(t *testing.T) {
	enterNetns(t)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()

	group := newCgroup(t)
	prog := load(t, &ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	l, err := link.AttachCgroup(link.CgroupOptions{
		Path: group, Attach: ebpf.AttachCGroupInet4Connect, Program: prog,
	})
	if err != nil {
		t.Fatalf("attach connect4 to %s: %v", group, err)
	}
	defer l.Close()

	port := ln.Addr().(*net.TCPAddr).Port
	if err := connect(t, port); err != nil {
		t.Errorf("connect outside the cgroup: %v, want success", err)
	}
	joinCgroup(t, group)
	if err := connect(t, port); !errors.Is(err, unix.EPERM) {
		t.Errorf("connect inside the cgroup: %v, want EPERM", err)
	}
}

// TestClsact attaches a tc program to one end of a veth pair through a clsact
// qdisc.
func TestClsact(t *testing.T) {
	enterNetns(t)
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "smoke0"}, PeerName: "smoke1"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatalf("add veth: %v", err)
	}
	dev, err := netlink.LinkByName("smoke0")
	if err != nil {
		t.Fatalf("find smoke0: %v", err)
	}
	attrs := netlink.QdiscAttrs{
		LinkIndex: dev.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}
	if err := netlink.QdiscAdd(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "clsact"}); err != nil {
		t.Fatalf("add clsact: %v", err)
	}
	prog := load(t, &ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	err = netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: dev.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS,
			Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1,
		},
		Fd: prog.FD(), Name: "smoke", DirectAction: true,
	})
	if err != nil {
		t.Fatalf("add bpf filter: %v", err)
	}
	filters, err := netlink.FilterList(dev, netlink.HANDLE_MIN_INGRESS) //nolint:forbidigo // nothing else changes this namespace
	if err != nil || len(filters) != 1 {
		t.Errorf("ingress filters = %v, %v, want one", filters, err)
	}
}

// enterNetns locks the test to a thread in a new network namespace with lo up.
func enterNetns(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		t.Fatalf("current netns: %v", err)
	}
	fresh, err := netns.New()
	if err != nil {
		t.Fatalf("new netns: %v", err)
	}
	t.Cleanup(func() {
		fresh.Close()
		if err := netns.Set(old); err != nil {
			t.Errorf("return to the old netns: %v", err)
			return // the thread stays locked, so Go discards it
		}
		old.Close()
		runtime.UnlockOSThread()
	})
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatalf("find lo: %v", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatalf("set lo up: %v", err)
	}
}

// load loads a program, with the verifier's log on failure.
func load(t *testing.T, spec *ebpf.ProgramSpec) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		t.Fatalf("load %v: %+v", spec.Type, err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

// connect dials 127.0.0.1:port from this thread, so from its namespace.
func connect(t *testing.T, port int) error {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("socket: %v", err)
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
}

// newCgroup makes a cgroup under the cgroup v2 mount, removed at the end.
func newCgroup(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(cgroupMount(t), "lbproxy-smoke-")
	if err != nil {
		t.Fatalf("new cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	return dir
}

// joinCgroup moves this process into dir until the test ends.
func joinCgroup(t *testing.T, dir string) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, home, _ := strings.Cut("\n"+string(self), "\n0::")
	home, _, _ = strings.Cut(home, "\n")
	move := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
	}
	if err := move(dir); err != nil {
		t.Fatalf("join cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := move(filepath.Join(cgroupMount(t), home)); err != nil {
			t.Errorf("return to the old cgroup: %v", err)
		}
	})
}

// cgroupMount returns where cgroup v2 is mounted.
func cgroupMount(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	t.Fatal("no cgroup v2 mount")
	return ""
}
