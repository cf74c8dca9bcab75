package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where `ip netns` looks for names.
const netnsDir = "/run/netns"

// linkTimeout bounds the wait for a new link to become operational.
const linkTimeout = 5 * time.Second

// space is one network namespace, with a name that `ip netns` shows.
type space struct {
	nsName string
	ns     netns.NsHandle
	nl     *netlink.Handle
}

// shareNetnsDir makes netnsDir a shared mount of itself, as `ip netns add` and what sets up
// pods do unless it is one: if they did it over the names of a lab, those could not be
// removed any more.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil { // as `ip netns add` does
		return fmt.Errorf("lock %s: %w", netnsDir, err)
	}
	share := func() error { return unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // it is no mount
		if err = unix.Mount(netnsDir, netnsDir, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return nil
}

// newSpace makes a namespace with loopback up and addresses usable at once.
func newSpace(nsName string, router bool) (*space, error) {
	s := &space{nsName: nsName, ns: netns.None()}
	err := onThread(func() (err error) {
		s.ns, err = netns.NewNamed(nsName)
		return err
	})
	if err == nil {
		err = s.prepare(router)
	}
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", nsName, errors.Join(err, s.remove()))
	}
	return s, nil
}

func (s *space) prepare(router bool) error {
	if err := s.do(func() error { return setSysctls(forwarding(router)) }); err != nil {
		return err
	}
	nl, err := netlink.NewHandleAt(s.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	s.nl = nl
	return s.up("lo")
}

// hostSysctls hold in every host. A new namespace inherits some IPv4 settings
// of the machine, so what matters is set even where it is the default. Redirects
// are neither sent nor heeded, so that a path never depends on which packet came
// first; a host may refuse as often as it is asked.
var hostSysctls = [][2]string{
	{"ipv6/conf/all/accept_dad", "0"},
	{"ipv6/conf/default/accept_dad", "0"},
	{"ipv6/conf/default/router_solicitations", "0"},
	{"ipv6/conf/default/accept_ra", "0"},
	{"ipv6/conf/all/accept_redirects", "0"},
	{"ipv6/conf/default/accept_redirects", "0"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv4/conf/default/accept_redirects", "0"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/icmp_ratemask", "0"},
	{"ipv6/icmp/ratelimit", "0"},
}

// forwarding makes a namespace a router, or not one.
func forwarding(on bool) [][2]string {
	v := "0"
	if on {
		v = "1"
	}
	return [][2]string{{"ipv4/ip_forward", v}, {"ipv6/conf/all/forwarding", v}}
}

// setSysctls sets sysctls, then hostSysctls: forwarding resets other settings.
func setSysctls(sysctls [][2]string) error {
	for _, kv := range slices.Concat(sysctls, hostSysctls) {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", kv[0]), []byte(kv[1]), 0); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", kv[0], kv[1], err)
		}
	}
	// A namespace may only choose what the machine allows to everyone: cubic
	// if it can, else reno. BBR's pacing timers would blur the benchmarks.
	for _, cc := range []string{"cubic", "reno"} {
		if os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte(cc), 0) == nil {
			break
		}
	}
	return nil
}

// onThread runs f on a thread that is back in its namespace afterwards, or gone.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		orig, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("current namespace: %w", err)
			return
		}
		defer orig.Close()
		err = f()
		if rerr := netns.Set(orig); rerr != nil {
			// Left locked, the thread ends with this goroutine.
			done <- errors.Join(err, fmt.Errorf("restore namespace: %w", rerr))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// do runs f on a thread inside the namespace.
func (s *space) do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.ns); err != nil {
			return fmt.Errorf("enter namespace %s: %w", s.nsName, err)
		}
		return f()
	})
}

func (s *space) remove() error {
	if s.nl != nil {
		s.nl.Close()
	}
	if s.ns.IsOpen() {
		s.ns.Close()
	}
	return removeNetns(s.nsName)
}

func removeNetns(name string) error {
	path := filepath.Join(netnsDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	return nil
}

func (s *space) link(name string) (netlink.Link, error) {
	l, err := s.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("%s: link %s: %w", s.nsName, name, err)
	}
	return l, nil
}

func (s *space) up(name string) error {
	l, err := s.link(name)
	if err != nil {
		return err
	}
	if err := s.nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("%s: link %s: up: %w", s.nsName, name, err)
	}
	return nil
}

// awaitUp waits until the link carries packets.
func (s *space) awaitUp(name string) error {
	deadline := time.Now().Add(linkTimeout)
	for {
		l, err := s.link(name)
		if err != nil {
			return err
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: link %s is %s after %s", s.nsName, name, l.Attrs().OperState, linkTimeout)
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *space) setMTU(name string, mtu int) error {
	l, err := s.link(name)
	if err != nil {
		return err
	}
	if err := s.nl.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("%s: link %s: mtu %d: %w", s.nsName, name, mtu, err)
	}
	return nil
}

// addAddr adds an address without duplicate address detection.
func (s *space) addAddr(dev string, p netip.Prefix, scope netlink.Scope) error {
	l, err := s.link(dev)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(p), Scope: int(scope)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := s.nl.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("%s: link %s: address %s: %w", s.nsName, dev, p, err)
	}
	return nil
}

// addRoute routes dst through dev: to the neighbour via, or directly if via is
// not valid. src is the preferred source address and may be invalid too.
func (s *space) addRoute(dst netip.Prefix, dev string, via, src netip.Addr) error {
	l, err := s.link(dev)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst)}
	if via.IsValid() {
		r.Gw = via.AsSlice()
		r.SetFlag(netlink.FLAG_ONLINK)
	} else if dst.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	if src.IsValid() {
		r.Src = src.AsSlice()
	}
	if err := s.nl.RouteAdd(r); err != nil {
		return fmt.Errorf("%s: route %s dev %s: %w", s.nsName, dst, dev, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	a := p.Addr()
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(p.Bits(), a.BitLen())}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
