// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	connectBatch = 256 // events taken, and connects begun, before the loop looks around
	noDescriptor = -1
)

// connector probes over TCP. One goroutine waits for all connections, which are reset when
// they have told enough, so that nothing of them stays on this node.
type connector struct {
	limit int
	talk  func(*exchange, Target) error // begins what is said once there is a connection; nil: nothing is, it is healthy then

	mu     sync.Mutex
	turns  turns
	loop   *os.File  // waits for events, until its deadline; nil: there is no loop
	alarm  time.Time // the deadline; zero: there is none
	asleep bool      // the loop has to be woken
	ended  bool
}

func newConnector(limit int, talk func(*exchange, Target) error) *connector {
	return &connector{limit: limit, talk: talk, turns: newTurns(limit)}
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
	if c.asleep && c.loop != nil {
		c.asleep = false
		c.ring(time.Unix(1, 0))
	}
}

// ring ends the loop's sleep at a time; zero: only an event does. c.mu is held.
func (c *connector) ring(at time.Time) {
	if at != c.alarm {
		c.alarm = at
		_ = c.loop.SetReadDeadline(at) // fails for files that nobody can wait for
	}
}

// attempt is a probe that is under way, or a socket for the next one.
type attempt struct {
	number   int
	socket   socket
	busy     bool
	job      job
	start    time.Time
	deadline time.Time
	exchange exchange // if something is to be said
}

// connects is the loop of a connector.
type connects struct {
	c        *connector
	now      func() time.Time
	file     *os.File        // the epoll instance
	wait     syscall.RawConn // for file
	epoll    int             // its descriptor
	attempts []*attempt      // by number
	idle     [2][]*attempt   // of them, by whether their socket is of IPv6
	bare     []*attempt      // have no socket
	busy     int             // attempts that are under way
	earliest time.Time       // no deadline of theirs is before it
	batch    []job
	events   [connectBatch]unix.EpollEvent
	input    [maxHeaderBytes]byte // what was read last
}

// run probes until ctx ends.
func (c *connector) run(ctx context.Context) error {
	l := &connects{c: c, now: time.Now}
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
		if err := l.turn(ctx); err != nil {
			return fmt.Errorf("TCP probes: %w", err)
		}
	}
	return nil
}

// open makes the epoll instance, for which the runtime waits as for a connection: a thread
// in a system call of its own would cost more.
func (l *connects) open() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(epoll, true); err != nil {
		unix.Close(epoll)
		return os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(epoll), "epoll")
	wait, err := file.SyscallConn()
	if err == nil {
		err = file.SetReadDeadline(time.Time{})
	}
	if err != nil {
		file.Close()
		return err
	}
	l.epoll, l.file, l.wait = epoll, file, wait
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.c.loop = file
	return nil
}

// close ends what is under way and what waits.
func (l *connects) close() {
	l.c.mu.Lock()
	rest := l.c.turns.drain()
	l.c.loop, l.c.ended = nil, true
	l.c.mu.Unlock()
	for _, a := range l.attempts {
		if a.busy {
			l.end(a, errEnded)
		}
		a.socket.close()
	}
	l.file.Close()
	for _, j := range rest {
		j.end(errEnded, 0)
	}
}

// admit begins what waits, as long as there are places.
func (l *connects) admit() {
	l.c.mu.Lock()
	for n := min(connectBatch, l.c.limit-l.busy); n > len(l.batch); {
		j, ok := l.c.turns.pop()
		if !ok {
			break
		}
		l.batch = append(l.batch, j)
	}
	l.c.mu.Unlock()
	for _, j := range l.batch {
		l.begin(j)
	}
	clear(l.batch)
	l.batch = l.batch[:0]
}

// begin begins to connect.
func (l *connects) begin(j job) {
	a := l.vacant(j.t.Addr.Addr().Is6())
	l.busy++
	a.busy, a.job, a.start = true, j, l.now()
	a.deadline = a.start.Add(j.t.Probe.Timeout)
	if l.busy == 1 || a.deadline.Before(l.earliest) {
		l.earliest = a.deadline
	}
	if err := l.dial(a); err != nil {
		l.end(a, err)
	}
}

func (l *connects) dial(a *attempt) error {
	if l.c.talk != nil {
		if err := l.c.talk(&a.exchange, a.job.t); err != nil {
			return err
		}
	}
	return l.connect(a)
}

// connect begins to connect a.
func (l *connects) connect(a *attempt) error {
	to := a.job.t.Addr
	if a.socket.fd == noDescriptor {
		if err := a.socket.open(to.Addr().Is6(), l.epoll, a.number); err != nil {
			return err
		}
	}
	return a.socket.connect(to)
}

// vacant returns an attempt that is not under way, if possible with a socket of the family.
func (l *connects) vacant(six bool) *attempt {
	for _, list := range []*[]*attempt{&l.idle[family(six)], &l.bare} {
		if last := len(*list) - 1; last >= 0 {
			a := (*list)[last]
			*list = (*list)[:last]
			return a
		}
	}
	a := &attempt{number: len(l.attempts), socket: socket{fd: noDescriptor}}
	l.attempts = append(l.attempts, a)
	return a
}

// vacate keeps a for another probe.
func (l *connects) vacate(a *attempt) {
	if a.socket.fd != noDescriptor {
		list := &l.idle[family(a.socket.six)]
		if len(*list) < connectBatch && a.socket.disconnect() {
			*list = append(*list, a)
			return
		}
		a.socket.close()
	}
	l.bare = append(l.bare, a)
}

// turn begins what can begin, ends what has ended, and then waits if there is no more. An
// attempt is too late only if, after its deadline, no event of it was there: a loop that
// could not run for a while blames nobody.
func (l *connects) turn(ctx context.Context) error {
	l.admit()
	asked := l.now()
	n, err := l.poll()
	if err != nil {
		return err
	}
	l.heed(n)
	if n == len(l.events) {
		return nil // there may be more events
	}
	l.expire(asked)
	if !l.rest(ctx) {
		return nil
	}
	n = 0
	woken := l.wait.Read(func(uintptr) bool {
		n, err = l.poll()
		return n != 0 || err != nil
	})
	l.c.mu.Lock()
	l.c.asleep = false
	l.c.mu.Unlock()
	if err == nil && !errors.Is(woken, os.ErrDeadlineExceeded) {
		err = woken
	}
	l.heed(n)
	return err
}

// poll returns how many events there are.
func (l *connects) poll() (int, error) {
	n, _, err := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll), uintptr(unsafe.Pointer(&l.events)), uintptr(len(l.events)), 0, 0, 0)
	if err != 0 && err != unix.EINTR {
		return 0, os.NewSyscallError("epoll_pwait", err)
	}
	if err != 0 {
		return 0, nil
	}
	return int(n), nil
}

// rest tells whether there is nothing to do before an event, or before the next deadline.
func (l *connects) rest(ctx context.Context) bool {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if ctx.Err() != nil || l.busy < l.c.limit && l.c.turns.ready() {
		return false
	}
	l.c.asleep = true
	var alarm time.Time
	if l.busy > 0 {
		alarm = l.earliest
	}
	l.c.ring(alarm)
	return true
}

// expire ends attempts that had time until now.
func (l *connects) expire(now time.Time) {
	if l.busy == 0 || l.earliest.After(now) {
		return
	}
	var next time.Time
	for _, a := range l.attempts {
		switch {
		case !a.busy:
		case !a.deadline.After(now):
			l.late(a)
		case next.IsZero() || a.deadline.Before(next):
			next = a.deadline
		}
	}
	l.earliest = next
}

// late ends an attempt that had no answer in time.
func (l *connects) late(a *attempt) {
	err := context.DeadlineExceeded
	if l.c.talk != nil && !a.exchange.connected {
		err = fmt.Errorf("%w: %w", ErrUnreached, err)
	}
	l.end(a, err)
}

// heed takes note of what the first n events are about. One that is about a socket which
// waits for its next probe is old.
func (l *connects) heed(n int) {
	for _, e := range l.events[:n] {
		a := l.attempts[e.Fd]
		switch {
		case !a.busy:
		case l.c.talk != nil:
			l.converse(a, e.Events)
		default:
			l.end(a, a.socket.failure(e.Events))
		}
	}
}

// converse goes on with what a says, or hears.
func (l *connects) converse(a *attempt, events uint32) {
	x := &a.exchange
	if !x.connected {
		if err := a.socket.failure(events); err != nil {
			l.end(a, err)
			return
		}
		x.connected = true
	}
	again, over, err := x.step(a.socket.fd, l.input[:])
	switch {
	case over:
		l.end(a, err)
	case again:
		if !a.socket.disconnect() {
			a.socket.close()
		}
		x.connected = false
		if err := l.connect(a); err != nil {
			l.end(a, err)
		}
	}
}

// end ends an attempt, which resets the connection, and tells what came of it.
func (l *connects) end(a *attempt, err error) {
	took := l.now().Sub(a.start)
	j := a.job
	a.busy, a.job = false, job{}
	l.busy--
	l.vacate(a)
	l.c.mu.Lock()
	l.c.turns.leave(j)
	l.c.mu.Unlock()
	if !errors.Is(err, errEnded) {
		err = blame(err)
	}
	j.end(err, took)
}
