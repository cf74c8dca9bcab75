// SPDX-License-Identifier: Apache-2.0

package live

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/bench/internal/node"
	"github.com/lbproxy/lbproxy/bench/internal/station"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

// farm is all backends of a scenario. Each is the simulator's server with its queue,
// followed in real time: a request ends when it ends there.
type farm struct {
	sc   *scenario.Scenario
	wake int // eventfd: something is due earlier than before

	mu       sync.Mutex
	start    time.Time
	running  bool
	backends []*backend
	timers   []*time.Timer // of changes
}

// backend is one of them.
type backend struct {
	group *scenario.Group
	at    netip.AddrPort
	queue station.Server
	jobs  map[int32]job
	last  int32
	count uint64

	listener *net.TCPListener
	packets  *net.UDPConn
}

// job is a request that a backend has.
type job struct {
	conn *net.TCPConn // nil: of UDP
	from netip.AddrPort
	id   uint64 // that the datagram's answer repeats
}

// requestSize is that of a request: the work, in seconds, and a number.
const requestSize = 16

func newFarm(sc *scenario.Scenario) (*farm, error) {
	f := &farm{sc: sc, start: time.Now(), running: true} // who looks whether all is there is served
	var err error
	if f.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	for i := range sc.Backends {
		for range sc.Backends[i].Count {
			at := netip.AddrPortFrom(node.Plus(firstBackend, len(f.backends)), backendPort)
			f.backends = append(f.backends, &backend{group: &sc.Backends[i], at: at})
		}
	}
	for i, b := range f.backends {
		f.reset(b)
		if err := f.open(i, b); err != nil {
			return nil, err
		}
	}
	go f.work()
	return f, nil
}

// reset makes a backend as it is in the beginning.
func (f *farm) reset(b *backend) {
	b.drop()
	b.queue = station.Server{Speed: b.group.Speed, Cores: b.group.Cores, Shared: f.sc.Discipline == "ps"}
	b.jobs, b.count = map[int32]job{}, 0
}

// drop resets every connection.
func (b *backend) drop() {
	for _, j := range b.jobs {
		if j.conn != nil {
			_ = j.conn.SetLinger(0) // it may be gone
			_ = j.conn.Close()
		}
	}
	clear(b.jobs)
}

// open listens.
func (f *farm) open(i int, b *backend) (err error) {
	if f.sc.Live.Traffic == scenario.UDP {
		if b.packets == nil {
			b.packets, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(b.at))
			go f.datagrams(b, b.packets)
		}
	} else if b.listener == nil {
		b.listener, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(b.at))
		go f.accept(b, b.listener)
	}
	if err != nil {
		return fmt.Errorf("backend %d: %w", i, err)
	}
	return nil
}

// shut refuses.
func (b *backend) shut() {
	b.drop()
	if b.listener != nil {
		_ = b.listener.Close()
	}
	if b.packets != nil {
		_ = b.packets.Close()
	}
	b.listener, b.packets = nil, nil
}

func (f *farm) accept(b *backend, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return // it was shut
		}
		go func() {
			var r [requestSize]byte
			if _, err := io.ReadFull(c, r[:]); err != nil { // a health check, or the client is gone
				_ = c.Close()
				return
			}
			f.enter(b, r[:], job{conn: c})
		}()
	}
}

func (f *farm) datagrams(b *backend, u *net.UDPConn) {
	var r [requestSize]byte
	for {
		n, from, err := u.ReadFromUDPAddrPort(r[:])
		if err != nil {
			return // it was shut
		}
		if n == requestSize {
			f.enter(b, r[:], job{from: from, id: binary.BigEndian.Uint64(r[8:])})
		}
	}
}

// enter takes a request.
func (f *farm) enter(b *backend, r []byte, j job) {
	work := math.Float64frombits(binary.BigEndian.Uint64(r))
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.running || b.queue.Failed {
		if j.conn != nil {
			_ = j.conn.SetLinger(0)
			_ = j.conn.Close()
		}
		return
	}
	b.count++
	b.last++
	b.jobs[b.last] = j
	b.queue.Enter(f.now(), b.last, work)
	f.rouse()
}

// now is the time of the queues.
func (f *farm) now() float64 { return time.Since(f.start).Seconds() }

// rouse has work look at what is due.
func (f *farm) rouse() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(f.wake, one[:]) // full: it is awake
}

// work ends requests when they are due. The time of an end is the queue's, not that of
// the wake-up: what is late is not later for the next.
func (f *farm) work() {
	runtime.LockOSThread()
	sharpen()
	var drained [8]byte
	for {
		wait := f.finish()
		ts := unix.NsecToTimespec(wait.Nanoseconds())
		_, _ = unix.Ppoll([]unix.PollFd{{Fd: int32(f.wake), Events: unix.POLLIN}}, &ts, nil) // interrupted: it looks again
		_, _ = unix.Read(f.wake, drained[:])
	}
}

// sharpen has the kernel wake this thread when it asked for, not up to 50 us later.
func sharpen() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) }

// finish ends what is due and returns how long nothing more is.
func (f *farm) finish() time.Duration {
	type ended struct {
		job
		b       *backend
		packets *net.UDPConn
		index   int
	}
	var all []ended
	f.mu.Lock()
	next := station.Never
	for i, b := range f.backends {
		for f.running && b.queue.Next() <= f.now() {
			done, _ := b.queue.Leave(b.queue.Next())
			all = append(all, ended{b.jobs[done], b, b.packets, i})
			delete(b.jobs, done)
		}
		if f.running {
			next = min(next, b.queue.Next())
		}
	}
	wait := time.Hour
	if next < station.Never {
		wait = max(0, time.Duration((next-f.now())*float64(time.Second)))
	}
	f.mu.Unlock()
	for _, e := range all {
		answer := binary.BigEndian.AppendUint16(nil, uint16(e.index))
		if e.conn != nil {
			_, _ = e.conn.Write(answer) // an error is the client's to notice
			_ = e.conn.Close()
		} else if e.packets != nil {
			_, _ = e.packets.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(answer, e.id), e.from)
		}
	}
	return wait
}

// begin starts the scenario's time at start.
func (f *farm) begin(start time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.start, f.running = start, true
	for i, b := range f.backends {
		f.reset(b)
		if err := f.open(i, b); err != nil {
			return err
		}
	}
	f.timers = nil
	for _, c := range f.sc.InOrder() {
		at := time.Until(start.Add(time.Duration(c.At)))
		f.timers = append(f.timers, time.AfterFunc(at, func() { f.change(&c) }))
	}
	return nil
}

// change applies one to the backends that it concerns.
func (f *farm) change(c *scenario.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.running {
		return
	}
	for i, b := range f.backends {
		if b.group.Name != c.Backends {
			continue
		}
		b.queue.Advance(max(f.now(), 0))
		switch c.Action {
		case scenario.ChangeSlow:
			b.queue.Speed = b.group.Speed / c.Factor
		case scenario.ChangeFreeze, scenario.ChangeBlackhole:
			b.queue.Speed = 0
		case scenario.ChangeRecover:
			b.queue.Speed, b.queue.Failed = b.group.Speed, false
			_ = f.open(i, b) // nobody else has the address
		case scenario.ChangeFail:
			b.queue.Failed = true
			b.queue.Clear(f.now())
			b.shut()
		}
	}
	f.rouse()
}

// end stops everything and tells what was counted.
func (f *farm) end() counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.timers {
		t.Stop()
	}
	f.running = false
	var c counts
	for i, b := range f.backends {
		c.Backends = append(c.Backends, b.count)
		f.reset(b)
		_ = f.open(i, b) // nobody else has the address
	}
	return c
}
