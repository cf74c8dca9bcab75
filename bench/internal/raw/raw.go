// SPDX-License-Identifier: Apache-2.0

// Package raw is sockets by plain system calls, without the Go runtime's bookkeeping of
// blocked threads, which would be a part of what is measured.
package raw

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Address is a socket address in the kernel's form, ready for a system call.
type Address struct {
	raw  unix.RawSockaddrInet6 // an IPv4 address uses its first bytes
	size uintptr
	v6   bool
}

// AddressOf converts ap.
func AddressOf(ap netip.AddrPort) *Address {
	port := ap.Port()<<8 | ap.Port()>>8
	if ap.Addr().Is4() {
		a := &Address{size: unix.SizeofSockaddrInet4}
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw))
		*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: ap.Addr().As4()}
		return a
	}
	return &Address{
		raw:  unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: ap.Addr().As16()},
		size: unix.SizeofSockaddrInet6, v6: true,
	}
}

// Connect is connect(2).
func (a *Address) Connect(fd int) error {
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

// Socket makes a blocking socket of its family.
func (a *Address) Socket(kind int) (int, error) {
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

// DialTCP opens a connection that ends with a reset, so that no port stays in
// TIME_WAIT.
func (a *Address) DialTCP() (int, error) {
	fd, err := a.Socket(unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	err = SetReset(fd)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		err = a.Connect(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// SetReset makes closing fd send a reset.
func SetReset(fd int) error {
	err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err != nil {
		return fmt.Errorf("linger: %w", err)
	}
	return nil
}

// Transfer is read(2) or write(2), by number, of all of b.
func Transfer(trap uintptr, fd int, b []byte) error {
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

// Listen opens a non-blocking TCP socket on every address of both families.
func Listen(port uint16) (int, error) {
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

// Accept gives each connection a thread of its own, until the process ends.
func Accept(fd int, handle func(int)) {
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err == nil {
			go func() {
				runtime.LockOSThread()
				defer unix.Close(c)
				handle(c)
			}()
		}
	}
}

// Echo sends each byte back.
func Echo(fd int) {
	if unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) != nil {
		return
	}
	b := make([]byte, 1)
	for Transfer(unix.SYS_READ, fd, b) == nil && Transfer(unix.SYS_WRITE, fd, b) == nil {
	}
}

// Sink takes what comes.
func Sink(fd int) {
	b := make([]byte, 1<<18)
	for {
		if n, err := unix.Read(fd, b); n == 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
