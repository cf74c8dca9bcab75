// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	connectBatch = 256 // events taken, and connects begun, before the loop looks around
	noDescriptor = -1
)

// connector probes by TCP: a SYN that is answered by a SYN-ACK is healthy. The connection is
// reset at once, so that nothing of it stays on this node. One goroutine waits for all.
type connector struct {
	limit int

	mu     sync.Mutex
	turns  turns
	event  int  // an eventfd that wakes the loop; noDescriptor: there is no loop
	asleep bool // the loop waits for events and has to be woken
	ended  bool
}

func newConnector(limit int) *connector {
	return &connector{limit: limit, turns: newTurns(limit), event: noDescriptor}
}

// start lets j wait for its turn.
func (c *connector) start(j job) {
	c.mu.Lock()
	ended := c.ended
	if !ended {
		c.turns.push(j)
		c.rouse()
	}
	c.mu.Unlock()
	if ended {
		j.end(errEnded, 0)
	}
}

// rouse wakes the loop. c.mu is held.
func (c *connector) rouse() {
	if c.asleep && c.event != noDescriptor {
		c.asleep = false
		one := [8]byte{1}
		_, _ = unix.Write(c.event, one[:]) // fails only if it was written 2^64-2 times
	}
}

// attempt is a connection that is being made.
type attempt struct {
	job   job
	fd    int
	start time.Time
	dated // the deadline
}

// connects is the loop of a connector.
type connects struct {
	c        *connector
	epoll    int
	attempts map[int32]*attempt // by descriptor
	order    queue[*attempt]
	events   [connectBatch]unix.EpollEvent
}

// run probes until ctx ends.
func (c *connector) run(ctx context.Context) error {
	l := &connects{c: c, attempts: map[int32]*attempt{}}
	if err := l.open(); err != nil {
		return fmt.Errorf("TCP probes: %w", err)
	}
	defer l.close()
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rouse()
	})
	defer stop()
	for ctx.Err() == nil {
		l.admit()
		if err := l.wait(ctx); err != nil {
			return fmt.Errorf("TCP probes: %w", err)
		}
	}
	return nil
}

func (l *connects) open() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return os.NewSyscallError("eventfd", err)
	}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, event, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(event)}); err != nil {
		unix.Close(epoll)
		unix.Close(event)
		return os.NewSyscallError("epoll_ctl", err)
	}
	l.epoll = epoll
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.c.event = event
	return nil
}

// close ends what is under way and what waits.
func (l *connects) close() {
	l.c.mu.Lock()
	rest := l.c.turns.drain()
	unix.Close(l.c.event)
	l.c.event, l.c.ended = noDescriptor, true
	l.c.mu.Unlock()
	for len(l.order) > 0 {
		l.end(l.order[0], errEnded)
	}
	unix.Close(l.epoll)
	for _, j := range rest {
		j.end(errEnded, 0)
	}
}

// admit begins what waits, as long as there are places.
func (l *connects) admit() {
	for range connectBatch {
		if len(l.attempts) >= l.c.limit {
			return
		}
		l.c.mu.Lock()
		j, ok := l.c.turns.pop()
		l.c.mu.Unlock()
		if !ok {
			return
		}
		l.begin(j)
	}
}

// begin begins to connect.
func (l *connects) begin(j job) {
	a := &attempt{job: j, fd: noDescriptor, start: time.Now(), dated: undated}
	a.due = a.start.Add(j.t.Probe.Timeout)
	family, to := sockaddr(j.t.Addr)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		l.over(a, os.NewSyscallError("socket", err))
		return
	}
	a.fd = fd
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		l.over(a, os.NewSyscallError("setsockopt", err))
		return
	}
	// The answer to the SYN-ACK may wait for data, so that it becomes the reset: the
	// backend's kernel has shown that somebody listens, and its process is not bothered.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0); err != nil {
		l.over(a, os.NewSyscallError("setsockopt", err))
		return
	}
	if err := unix.Connect(fd, to); !errors.Is(err, unix.EINPROGRESS) {
		l.over(a, os.NewSyscallError("connect", err))
		return
	}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(fd)}); err != nil {
		l.over(a, os.NewSyscallError("epoll_ctl", err))
		return
	}
	l.attempts[int32(fd)] = a
	l.order.put(a)
}

func sockaddr(to netip.AddrPort) (int, unix.Sockaddr) {
	if to.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// wait waits for an event or a deadline, and ends what either is about. An attempt is too
// late only if, after its deadline, no event of it was there: a loop that could not run
// for a while blames nobody.
func (l *connects) wait(ctx context.Context) error {
	asked := time.Now()
	n, err := unix.EpollWait(l.epoll, l.events[:], l.patience(ctx, asked))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("epoll_wait", err)
	}
	l.c.mu.Lock()
	l.c.asleep = false
	l.c.mu.Unlock()
	for _, e := range l.events[:max(n, 0)] {
		l.happened(e)
	}
	if err != nil || n == len(l.events) {
		return nil // there may be more events
	}
	for len(l.order) > 0 && !l.order[0].due.After(asked) {
		l.end(l.order[0], context.DeadlineExceeded)
	}
	return nil
}

// patience returns how many milliseconds to wait for events; -1: for ever.
func (l *connects) patience(ctx context.Context, now time.Time) int {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if ctx.Err() != nil || len(l.attempts) < l.c.limit && l.c.turns.ready() {
		return 0
	}
	l.c.asleep = true
	if len(l.order) == 0 {
		return -1
	}
	left := max(0, l.order[0].due.Sub(now))
	return int(min((left+time.Millisecond-1)/time.Millisecond, 1<<30))
}

// happened ends the attempt that an event is about.
func (l *connects) happened(e unix.EpollEvent) {
	a := l.attempts[e.Fd]
	if a == nil { // the eventfd
		var count [8]byte
		_, _ = unix.Read(int(e.Fd), count[:]) // nothing to read is fine, too
		return
	}
	var err error
	if e.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		code, failed := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case failed != nil:
			err = os.NewSyscallError("getsockopt", failed)
		case code != 0: // 0: it was established, and the backend has reset it since
			err = os.NewSyscallError("connect", unix.Errno(code))
		}
	}
	l.end(a, err)
}

// end ends an attempt that is under way.
func (l *connects) end(a *attempt, err error) {
	delete(l.attempts, int32(a.fd))
	l.order.remove(a)
	l.over(a, err)
}

// over closes the socket, which resets the connection, and tells what came of it.
func (l *connects) over(a *attempt, err error) {
	took := time.Since(a.start)
	if a.fd != noDescriptor {
		unix.Close(a.fd)
	}
	l.c.mu.Lock()
	l.c.turns.leave(a.job)
	l.c.mu.Unlock()
	a.job.end(blame(err), took)
}
