// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// workNull connects to all targets each second, as a program does that does nothing else: it
// is what probes by TCP cost without anything that decides, counts or tells. The number of
// targets is in the environment. Each second it writes how many connections it has made, and
// the processor time that its thread has used, in µs.
const (
	workNull   = "null"
	envTargets = "LBPROXY_FAILOVER_TARGETS"
	nullTick   = 5 * time.Millisecond
)

// null is the null program.
type null struct {
	epoll  int
	linger unix.Linger
	off    int32
	to     unix.RawSockaddrInet4
	events [256]unix.EpollEvent
}

// nullProbes runs until it is killed, or a call fails.
func nullProbes() error {
	runtime.LockOSThread()
	n, err := strconv.Atoi(os.Getenv(envTargets))
	if err != nil {
		return err
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	p := &null{epoll: epoll, linger: unix.Linger{Onoff: 1}, to: unix.RawSockaddrInet4{Family: unix.AF_INET}}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&p.to.Port))[:], tcpPort)
	each := max(1, n*int(nullTick)/int(time.Second))
	at := targets.Addr()
	for i, next := 0, time.Now(); ; i++ {
		if i%each == 0 {
			next = next.Add(nullTick)
			if err := p.collect(time.Until(next)); err != nil {
				return err
			}
		}
		if i%n == 0 {
			at = targets.Addr()
			var used unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_THREAD, &used); err != nil {
				return err
			}
			fmt.Println(i, (used.Utime.Nano()+used.Stime.Nano())/1000)
		}
		at = at.Next()
		p.to.Addr = at.As4()
		if err := p.begin(); err != nil {
			return err
		}
	}
}

// begin begins to connect.
func (p *null) begin() error {
	fd, _, err := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != 0 {
		return err
	}
	event := unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(fd)}
	_, _, linger := unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&p.linger)), unsafe.Sizeof(p.linger), 0)
	_, _, ack := unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, uintptr(unsafe.Pointer(&p.off)), unsafe.Sizeof(p.off), 0)
	_, _, connect := unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&p.to)), unsafe.Sizeof(p.to))
	_, _, add := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.epoll), unix.EPOLL_CTL_ADD, fd, uintptr(unsafe.Pointer(&event)), 0, 0)
	if linger != 0 || ack != 0 || add != 0 || connect != unix.EINPROGRESS {
		return errors.Join(linger, ack, connect, add)
	}
	return nil
}

// collect closes what is connected, for a time.
func (p *null) collect(d time.Duration) error {
	for end := time.Now().Add(d); ; {
		n, err := unix.EpollWait(p.epoll, p.events[:], int(max(0, time.Until(end)).Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for _, e := range p.events[:max(n, 0)] {
			_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(e.Fd), 0, 0)
		}
		if n <= 0 && time.Until(end) < time.Millisecond {
			return nil
		}
	}
}
