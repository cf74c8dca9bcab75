// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// exchange is one kind of first packet.
type exchange struct {
	row    string
	from   string // the host
	udp    bool
	direct bool // to an endpoint itself, not to a Service
}

const (
	rowTCP     = "TCP connect to a Service, from a pod"
	rowUDP     = "first UDP datagram to a Service, from a pod"
	rowOutside = "TCP connect to a Service, from outside"
	rowDirect  = "TCP connect to a pod, from a pod"
)

var exchanges = []exchange{
	{rowTCP, clientPod, false, false},
	{rowUDP, clientPod, true, false},
	{rowOutside, lab.Outside, false, false},
	{rowDirect, clientPod, false, true},
}

const (
	servicePort  = 80
	endpointPort = 8080
)

// dialer sends first packets in one place, and takes them at the other end. The thread
// that does one does the other: what is measured is not its wake-up.
type dialer struct {
	place    *place
	bare     bool // no proxy is there: endpoints are dialed
	rng      *rand.Rand
	tcp, udp int // sockets of the pod that has all endpoints
	count    uint64
}

func newDialer(p *place, bare bool) (*dialer, error) {
	d := &dialer{place: p, bare: bare, rng: rand.New(rand.NewPCG(3, 4)), tcp: -1, udp: -1}
	err := p.Lab.Host(serverPod).Do(func() (err error) {
		if d.tcp, err = listener(unix.SOCK_STREAM); err != nil {
			return err
		}
		if err := unix.Listen(d.tcp, 128); err != nil {
			return err
		}
		d.udp, err = listener(unix.SOCK_DGRAM)
		return err
	})
	if err == nil {
		err = d.warm()
	}
	if err != nil {
		return nil, fmt.Errorf("first packets: %w", errors.Join(err, d.close()))
	}
	return d, nil
}

// slow is when an exchange has failed.
var slow = unix.Timeval{Sec: 2}

func socket(kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	return fd, errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &slow),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &slow),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})) // its end is a reset
}

func listener(kind int) (int, error) {
	fd, err := socket(kind)
	if err != nil {
		return fd, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrInet4{Port: endpointPort})
}

// warm makes one exchange of each kind: neighbours are known afterwards.
func (d *dialer) warm() error {
	for _, x := range exchanges {
		fds, err := d.sockets(x, 1)
		if err != nil {
			return err
		}
		if _, err := d.exchange(x, fds[0]); err != nil {
			return err
		}
	}
	return nil
}

// sockets makes n sockets of a host for exchanges.
func (d *dialer) sockets(x exchange, n int) (fds []int, err error) {
	kind := unix.SOCK_STREAM
	if x.udp {
		kind = unix.SOCK_DGRAM
	}
	err = d.place.Lab.Host(x.from).Do(func() error {
		for range n {
			fd, err := socket(kind)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		return nil
	})
	return fds, err
}

// target is a Service of x's protocol, or an endpoint of one.
func (d *dialer) target(x exchange) netip.AddrPort {
	w := d.place.world
	i := d.rng.IntN(w.services)
	for w.udp(i) != x.udp {
		i = d.rng.IntN(w.services)
	}
	if x.direct || d.bare {
		return netip.AddrPortFrom(plus(firstPod, i*w.endpoints+d.rng.IntN(w.endpoints)), endpointPort)
	}
	return netip.AddrPortFrom(plus(firstVIP, i), servicePort)
}

// exchange uses fd up and returns how long it took, in microseconds.
func (d *dialer) exchange(x exchange, fd int) (float64, error) {
	defer unix.Close(fd)
	dst := d.target(x)
	try := d.connect
	if x.udp {
		try = d.datagram
	}
	took, err := try(fd, dst)
	if err != nil {
		return 0, fmt.Errorf("%s: %s: %w", x.row, dst, err)
	}
	return float64(took.Nanoseconds()) / 1e3, nil
}

// connect is the time of a TCP handshake. No call of it gives the processor back to
// Go's scheduler, which would be part of the time.
func (d *dialer) connect(fd int, dst netip.AddrPort) (time.Duration, error) {
	to := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: dst.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&to.Port))[:], dst.Port())
	begin := time.Now()
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to)), unix.SizeofSockaddrInet4)
	took := time.Since(begin)
	if e != 0 {
		return 0, os.NewSyscallError("connect", e)
	}
	conn, _, err := unix.Accept4(d.tcp, unix.SOCK_CLOEXEC)
	if err != nil {
		return 0, os.NewSyscallError("accept", err)
	}
	return took, unix.Close(conn)
}

// datagram is the time from before a datagram is sent until it has been received.
func (d *dialer) datagram(fd int, dst netip.AddrPort) (time.Duration, error) {
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(dst.Port()), Addr: dst.Addr().As4()}); err != nil {
		return 0, os.NewSyscallError("connect", err)
	}
	d.count++
	sent, got := d.count, uint64(0)
	begin := time.Now()
	_, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&sent)), unsafe.Sizeof(sent))
	if e != 0 {
		return 0, os.NewSyscallError("write", e)
	}
	for got != sent { // one that was late may still be there
		_, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(d.udp), uintptr(unsafe.Pointer(&got)), unsafe.Sizeof(got))
		if e != 0 {
			return 0, os.NewSyscallError("read", e)
		}
	}
	return time.Since(begin), nil
}

func (d *dialer) close() error {
	var errs []error
	for _, fd := range []int{d.tcp, d.udp} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
