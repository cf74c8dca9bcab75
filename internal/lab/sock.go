package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// sock is a client socket made with plain system calls: package net hides what
// the dataplane is asked to get right (family, getpeername, sendto).
// Methods block one thread in poll until their deadline.
type sock struct {
	fd int
	v6 bool
}

// newSock makes a non-blocking socket of req's family and binds it to req.From.
func newSock(req Request) (*sock, error) {
	s := &sock{v6: req.MappedV6 || !req.To.Addr().Is4()}
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if s.v6 {
		family = unix.AF_INET6
	}
	if req.Proto == UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	s.fd = fd
	if req.From == (netip.AddrPort{}) {
		return s, nil
	}
	if !s.fits(req.From.Addr()) {
		s.close()
		return nil, fmt.Errorf("bind %s: %w", req.From, unix.EAFNOSUPPORT)
	}
	// A fixed source port must be usable again while its last connection is in TIME_WAIT.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, s.addr(req.From))
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("bind %s: %w", req.From, err)
	}
	return s, nil
}

func (s *sock) addr(ap netip.AddrPort) unix.Sockaddr {
	a := ap.Addr()
	if s.v6 {
		return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: a.As16()}
	}
	if a.IsUnspecified() {
		a = netip.IPv4Unspecified()
	}
	return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: a.Unmap().As4()}
}

// fits reports whether the socket's family can name a.
func (s *sock) fits(a netip.Addr) bool { return s.v6 || a.Unmap().Is4() || a.IsUnspecified() }

func fromSockaddr(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// wait blocks until one of events, an error or the deadline.
func (s *sock) wait(events int16, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		ms := int(left/time.Millisecond) + 1
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: events}}, ms)
		if errors.Is(err, unix.EINTR) || err == nil && n == 0 {
			continue
		}
		return err
	}
}

// retry repeats op, waiting for events in between, while it would block.
func (s *sock) retry(events int16, deadline time.Time, op func() error) error {
	for {
		err := op()
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if err := s.wait(events, deadline); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

func (s *sock) connect(to netip.AddrPort, deadline time.Time) error {
	if !s.fits(to.Addr()) {
		return fmt.Errorf("connect %s: %w", to, unix.EAFNOSUPPORT)
	}
	err := unix.Connect(s.fd, s.addr(to))
	if errors.Is(err, unix.EINPROGRESS) {
		if err = s.wait(unix.POLLOUT, deadline); err == nil {
			err = s.pending()
		}
	}
	if err != nil {
		return fmt.Errorf("connect %s: %w", to, err)
	}
	return nil
}

// pending takes the socket's asynchronous error.
func (s *sock) pending() error {
	n, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		err = unix.Errno(n)
	}
	return err
}

func (s *sock) read(b []byte, deadline time.Time) (n int, err error) {
	err = s.retry(unix.POLLIN, deadline, func() (err error) {
		n, err = unix.Read(s.fd, b)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	return n, nil
}

func (s *sock) writeAll(b []byte, deadline time.Time) error {
	for len(b) > 0 {
		var n int
		err := s.retry(unix.POLLOUT, deadline, func() (err error) {
			n, err = unix.SendmsgN(s.fd, b, nil, nil, unix.MSG_NOSIGNAL)
			return err
		})
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// sendTo sends one datagram; a zero address means the connected peer.
func (s *sock) sendTo(b []byte, to netip.AddrPort, deadline time.Time) error {
	var sa unix.Sockaddr
	if to.IsValid() {
		if !s.fits(to.Addr()) {
			return fmt.Errorf("send to %s: %w", to, unix.EAFNOSUPPORT)
		}
		sa = s.addr(to)
	}
	err := s.retry(unix.POLLOUT, deadline, func() error {
		_, err := unix.SendmsgN(s.fd, b, nil, sa, unix.MSG_NOSIGNAL)
		return err
	})
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

func (s *sock) recvFrom(b []byte, deadline time.Time) (n int, from netip.AddrPort, err error) {
	var sa unix.Sockaddr
	err = s.retry(unix.POLLIN, deadline, func() (err error) {
		n, sa, err = unix.Recvfrom(s.fd, b, 0)
		return err
	})
	if err != nil {
		return 0, from, fmt.Errorf("receive: %w", err)
	}
	return n, fromSockaddr(sa), nil
}

// local is the zero AddrPort if getsockname fails; so is peer with getpeername.
func (s *sock) local() netip.AddrPort {
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return fromSockaddr(sa)
}

func (s *sock) peer() netip.AddrPort {
	sa, err := unix.Getpeername(s.fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return fromSockaddr(sa)
}

func (s *sock) close() {
	unix.Close(s.fd)
}

// abort closes with an RST where the protocol has one.
func (s *sock) abort() error {
	err := unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	s.close()
	if err != nil {
		return fmt.Errorf("linger: %w", err)
	}
	return nil
}

// kindOf classifies an error of a sock.
func kindOf(err error) Kind {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, unix.ECONNREFUSED):
		return Refused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return Timeout
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return Unreachable
	}
	return Failed
}
