// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// address is a socket address in the kernel's form, ready for a system call.
type address struct {
	raw  unix.RawSockaddrInet6 // an IPv4 address uses its first bytes
	size uintptr
	v6   bool
}

func addressOf(ap netip.AddrPort) *address {
	port := ap.Port()<<8 | ap.Port()>>8
	if ap.Addr().Is4() {
		a := &address{size: unix.SizeofSockaddrInet4}
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw))
		*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: ap.Addr().As4()}
		return a
	}
	return &address{
		raw:  unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: ap.Addr().As16()},
		size: unix.SizeofSockaddrInet6, v6: true,
	}
}

// connect is connect(2) without the Go runtime's bookkeeping of blocked threads,
// which would be a part of what is measured.
func (a *address) connect(fd int) error {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), a.size)
		switch errno {
		case 0, unix.EISCONN: // EISCONN: the interrupted call went on by itself
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("connect: %w", errno)
		}
	}
}

func (a *address) socket(kind int) (int, error) {
	family := unix.AF_INET
	if a.v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	return fd, nil
}

// dialTCP opens a connection that ends with a reset, so that no port stays in
// TIME_WAIT.
func (a *address) dialTCP() (int, error) {
	fd, err := a.socket(unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	err = setReset(fd)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		err = a.connect(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setReset(fd int) error {
	err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err != nil {
		return fmt.Errorf("linger: %w", err)
	}
	return nil
}

// transfer is read(2) or write(2), by number, of all of b.
func transfer(trap uintptr, fd int, b []byte) error {
	for len(b) > 0 {
		n, _, errno := unix.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return fmt.Errorf("transfer: %w", errno)
		case n == 0:
			return fmt.Errorf("transfer: %w", unix.EPIPE)
		default:
			b = b[n:]
		}
	}
	return nil
}

// listen opens a non-blocking TCP socket on every address of both families.
func listen(port uint16) (int, error) {
	const backlog = 4096
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)})
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return fd, nil
}
