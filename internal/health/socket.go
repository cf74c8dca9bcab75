// SPDX-License-Identifier: Apache-2.0

package health

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// family is an index.
func family(six bool) int {
	if six {
		return 1
	}
	return 0
}

// socket connects to one backend after the other: to make a socket, to set it up and to close
// it costs as much as the connection does.
type socket struct {
	fd    int // noDescriptor: there is none
	six   bool
	epoll int // where events come to
}

// open makes the socket. Events come to epoll with a number, whenever something changes.
func (s *socket) open(six bool, epoll, number int) error {
	domain := [...]int{unix.AF_INET, unix.AF_INET6}[family(six)]
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	*s = socket{fd, six, epoll}
	// The answer to the SYN-ACK waits for data, so that it becomes the reset, or goes with
	// the request: the backend's kernel has shown that somebody listens, and its process is
	// not bothered by a connection that says nothing. TCP_QUICKACK does the same, but for
	// one connection only.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1); err != nil {
		s.close()
		return os.NewSyscallError("setsockopt", err)
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(number)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		s.close()
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// connect begins to connect.
func (s *socket) connect(to netip.AddrPort) error {
	var code syscall.Errno
	port := func(p *uint16) { binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(p))[:], to.Port()) }
	if s.six {
		at := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: to.Addr().As16()}
		port(&at.Port)
		code = connect(s.fd, unsafe.Pointer(&at), unix.SizeofSockaddrInet6)
	} else {
		at := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
		port(&at.Port)
		code = connect(s.fd, unsafe.Pointer(&at), unix.SizeofSockaddrInet4)
	}
	if code == 0 || code == unix.EINPROGRESS {
		return nil
	}
	return os.NewSyscallError("connect", code)
}

// connect is connect(2), which does not block: the scheduler need not know of it.
func connect(fd int, to unsafe.Pointer, size uintptr) syscall.Errno {
	_, _, code := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(to), size)
	return code
}

// disconnect resets the connection, or gives it up, and forgets all about it. It tells
// whether the socket can be used again. Closing it with SO_LINGER of 0 would do the same to
// the connection.
func (s *socket) disconnect() bool {
	nowhere := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	return connect(s.fd, unsafe.Pointer(&nowhere), unsafe.Sizeof(nowhere)) == 0
}

// close closes the socket, if there is one, and resets the connection. Closing alone would not
// end its events while a process that is forked just then has a copy, and those would be
// taken for the next socket's of the same number.
func (s *socket) close() {
	if s.fd != noDescriptor {
		_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, s.fd, nil) // fails if open could not add it
		s.disconnect()
		unix.Close(s.fd)
		s.fd = noDescriptor
	}
}

// failure returns why there is no connection after an event; nil: there is one, or was.
func (s *socket) failure(events uint32) error {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) == 0 {
		return nil
	}
	code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	switch why := unix.Errno(code); {
	case code == 0, errors.Is(why, unix.ECONNRESET), errors.Is(why, unix.EPIPE): // it was established; a SYN that is reset is refused
		return nil
	default:
		return os.NewSyscallError("connect", why)
	}
}
