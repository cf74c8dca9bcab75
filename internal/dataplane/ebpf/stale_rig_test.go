// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func init() {
	scripts["doomed"] = scriptDoomed
	scripts["rivals"] = scriptRivals
	scripts["early"] = scriptEarly
	scripts["crowd"] = scriptCrowd
	scripts["exile"] = scriptExile
	scripts["lonely"] = scriptLonely
	scripts["hermit"] = scriptHermit
}

// killer makes another staleKiller of the rig's node.
func (r *rig) killer() (k *staleKiller) {
	r.t.Helper()
	r.onNode(func() (err error) {
		k, err = newStaleKiller(r.dp.maps)
		return err
	})
	r.t.Cleanup(func() {
		if err := k.close(); err != nil {
			r.t.Error(err)
		}
	})
	return k
}

// kill destroys what is stale and was left by the Dataplane's own killer. When it
// returns nothing is stale, so what lives was spared.
func (r *rig) kill(k *staleKiller) {
	r.t.Helper()
	start := time.Now()
	n, err := k.killStale(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Logf("%d sockets were destroyed in %v", n, time.Since(start))
}

// patient is a socket whose reads give up after a while, to a VIP: an AF_INET6 one if
// that is IPv6 or v4-mapped.
func patient(to netip.AddrPort, kind int) (fd int, sa unix.Sockaddr, err error) {
	family := unix.AF_INET6
	sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, sockaddr(to)
	}
	fd, err = unix.Socket(family, kind, 0)
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
	}
	return fd, sa, err
}

// talk makes one exchange on a connected socket.
func talk(fd int) error {
	var buf [256]byte
	if _, err := unix.Write(fd, []byte("hello")); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := read(fd, buf[:]); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return nil
}

// read reads once. A signal, such as the runtime's own, interrupts a read with a time
// limit: then it begins again.
func read(fd int, buf []byte) error {
	for {
		if _, err := unix.Read(fd, buf); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// scriptDoomed connects n UDP sockets and talks. After a step reads of all must have
// failed; connected again, they talk again.
func scriptDoomed(to netip.AddrPort, n int, step func()) error {
	fds := make([]int, n)
	var sa unix.Sockaddr
	for i := range fds {
		var err error
		if fds[i], sa, err = patient(to, unix.SOCK_DGRAM); err == nil {
			err = unix.Connect(fds[i], sa)
		}
		if err == nil {
			err = talk(fds[i])
		}
		if err != nil {
			return err
		}
	}
	step()
	if err := aborted(fds); err != nil {
		return err
	}
	step()
	for i, fd := range fds {
		if err := unix.Connect(fd, sa); err != nil {
			return fmt.Errorf("socket %d: connect again: %w", i, err)
		}
		if err := talk(fd); err != nil {
			return fmt.Errorf("socket %d: connected again: %w", i, err)
		}
	}
	step()
	return nil
}

// scriptEarly connects n UDP sockets where nobody answers yet. After a step reads of
// all must have failed; connected again, they talk.
func scriptEarly(to netip.AddrPort, n int, step func()) error {
	fds := make([]int, n)
	var sa unix.Sockaddr
	for i := range fds {
		var err error
		if fds[i], sa, err = patient(to, unix.SOCK_DGRAM); err == nil {
			err = unix.Connect(fds[i], sa)
		}
		if err != nil {
			return err
		}
	}
	step()
	if err := aborted(fds); err != nil {
		return err
	}
	for i, fd := range fds {
		err := unix.Connect(fd, sa)
		if err == nil {
			err = talk(fd)
		}
		if err != nil {
			return fmt.Errorf("socket %d: connected again: %w", i, err)
		}
	}
	step()
	return nil
}

// aborted fails unless reads of all sockets end with ECONNABORTED.
func aborted(fds []int) error {
	for i, fd := range fds {
		if err := read(fd, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			return fmt.Errorf("socket %d: read: %w, want %w", i, err, unix.ECONNABORTED)
		}
	}
	return nil
}

// scriptRivals connects n UDP sockets that share one local address and port, and are
// bound to a device. After a step reads of all must have failed.
func scriptRivals(to netip.AddrPort, n int, step func()) error {
	fds := make([]int, n)
	for i := range fds {
		fd, sa, err := patient(to, unix.SOCK_DGRAM)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
		if err == nil {
			err = unix.BindToDevice(fd, "eth0")
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: 7777})
		}
		if err == nil {
			err = unix.Connect(fd, sa)
		}
		if err != nil {
			return err
		}
		fds[i] = fd
	}
	step()
	if err := aborted(fds); err != nil {
		return err
	}
	step()
	return nil
}

// scriptExile does what scriptLonely does, as a process in a network namespace of its
// own.
func scriptExile(to netip.AddrPort, n int, _ func()) error {
	child := exec.Command("/proc/self/exe", to.String(), strconv.Itoa(n))
	child.Env = append(os.Environ(), envScript+"=lonely")
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	return child.Run()
}

// scriptLonely connects n UDP sockets where nobody answers. After a step reads of all
// must have failed.
func scriptLonely(to netip.AddrPort, n int, step func()) error {
	fds, err := connectLonely(to, n)
	if err != nil {
		return err
	}
	step()
	if err := aborted(fds); err != nil {
		return err
	}
	step()
	return nil
}

// scriptHermit holds n UDP sockets that are all there is of their network namespace.
func scriptHermit(to netip.AddrPort, n int, step func()) error {
	err := throwAway(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		_, err := connectLonely(to, n)
		return err
	})
	if err != nil {
		return err
	}
	step()
	return nil
}

// throwAway runs f on a thread that ends with it, so never on the process's first one.
func throwAway(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- throwAway(f) // not on this thread, which is taken
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// connectLonely makes routes to everywhere that end at once, and connects.
func connectLonely(to netip.AddrPort, n int) (fds []int, err error) {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 250, 0, 1), Mask: net.CIDRMask(32, 32)}})
	}
	if err == nil {
		everywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		err = netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: everywhere, Src: net.IPv4(10, 250, 0, 1)})
	}
	for range n {
		if err != nil {
			return nil, err
		}
		var fd int
		var sa unix.Sockaddr
		if fd, sa, err = patient(to, unix.SOCK_DGRAM); err == nil {
			err = unix.Connect(fd, sa)
		}
		fds = append(fds, fd)
	}
	return fds, err
}

// scriptCrowd connects n UDP sockets.
func scriptCrowd(to netip.AddrPort, n int, step func()) error {
	for range n {
		if _, err := dialFD(to, unix.SOCK_DGRAM); err != nil {
			return err
		}
	}
	step()
	return nil
}
