// SPDX-License-Identifier: Apache-2.0

package live

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/bench/internal/node"
	"github.com/lbproxy/lbproxy/bench/internal/raw"
	"github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

// fast is the server of traffic that is as fast as it can: it does nothing but what the
// path needs, on all addresses of all backends.
type fast struct {
	backlog   int // connections wait here until drain; -1: none do
	packets   int // the socket of datagrams; -1: none
	taken     map[netip.Addr]uint64
	delivered uint64 // datagrams, before the block
	number    int    // of backends
}

func newFast(sc *scenario.Scenario) (*fast, error) {
	f := &fast{backlog: -1, packets: -1, taken: map[netip.Addr]uint64{}}
	for _, g := range sc.Backends {
		f.number += g.Count
	}
	if err := os.WriteFile("/proc/sys/net/core/somaxconn", []byte("65535"), 0); err != nil { // of this namespace
		return nil, fmt.Errorf("backlog: %w", err)
	}
	if sc.Live.Traffic == scenario.Packets {
		return f, f.takePackets()
	}
	fd, err := raw.Listen(backendPort)
	if err != nil {
		return nil, err
	}
	switch sc.Live.Traffic {
	case scenario.Exchange:
		go raw.Accept(fd, raw.Echo)
	case scenario.Streamed:
		go raw.Accept(fd, raw.Sink)
	default:
		f.backlog = fd
		err = errors.Join(unix.Listen(fd, 65535), unix.SetNonblock(fd, true))
	}
	return f, err
}

// takePackets opens a socket that nobody reads before the end: what reaches it counts,
// whether there is room for it or not.
func (f *fast) takePackets() (err error) {
	f.packets, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.Bind(f.packets, &unix.SockaddrInet4{Port: backendPort})
	}
	if err != nil {
		return fmt.Errorf("datagrams: %w", err)
	}
	f.delivered, err = datagrams()
	return err
}

// datagrams is how many have reached sockets of this namespace, read or not.
func datagrams() (uint64, error) {
	text, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		return 0, fmt.Errorf("datagrams: %w", err)
	}
	return countDatagrams(string(text))
}

// countDatagrams adds those up that were taken to those for which there was no room.
func countDatagrams(snmp string) (uint64, error) {
	var names []string
	for line := range strings.Lines(snmp) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Udp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		var sum uint64
		for i, name := range names {
			if (name == "InDatagrams" || name == "RcvbufErrors") && i < len(fields) {
				n, err := strconv.ParseUint(fields[i], 10, 64)
				if err != nil {
					return 0, fmt.Errorf("datagrams: %w", err)
				}
				sum += n
			}
		}
		return sum, nil
	}
	return 0, errors.New("datagrams: no Udp in snmp")
}

// drain takes what has piled up, by the address that it came to.
func (f *fast) drain() error {
	for {
		fd, _, err := unix.Accept4(f.backlog, unix.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		if own, err := unix.Getsockname(fd); err == nil {
			if sa, ok := own.(*unix.SockaddrInet6); ok {
				f.taken[netip.AddrFrom16(sa.Addr).Unmap()]++
			}
		}
		unix.Close(fd)
	}
}

// end tells what was counted. Of many Services the backends with the same number within
// theirs are counted together.
func (f *fast) end() (counts, error) {
	c := counts{Backends: make([]uint64, f.number)}
	for a, n := range f.taken {
		b, first := a.As4(), firstBackend.As4()
		id := (int(b[1])-int(first[1]))<<16 + (int(b[2])-int(first[2]))<<8 + int(b[3]) - int(first[3])
		c.Backends[id%f.number] += n
	}
	clear(f.taken)
	for b := make([]byte, 64); f.packets >= 0; { // what waits counts when it is read
		if _, err := unix.Read(f.packets, b); err != nil {
			break
		}
	}
	now, err := datagrams()
	c.Delivered, f.delivered = now-f.delivered, now
	return c, err
}

// paths measures how fast a path is, on a thread that the runtime never takes away.
type paths struct {
	out     *outcome
	targets []*raw.Address
	next    int
}

func newPaths() *paths {
	runtime.GOMAXPROCS(16)
	debug.SetGCPercent(-1)
	return &paths{out: &outcome{Failed: map[string]int{}}}
}

// measure carries out an order; what it measured is added to out. It returns the processor
// time that it has measured, in seconds.
func (p *paths) measure(o order) (float64, error) {
	if p.targets == nil {
		for _, to := range o.Targets {
			p.targets = append(p.targets, raw.AddressOf(to))
		}
	}
	if o.Verb == verbConnect {
		return p.seconds(p.connect(o.N))
	}
	spec := o.Scenario.Live
	d := time.Duration(spec.Seconds)
	switch spec.Traffic {
	case scenario.Exchange:
		return p.seconds(p.exchange(d))
	case scenario.Streamed:
		return p.seconds(p.stream(d))
	}
	return p.seconds(p.packets(d))
}

func (p *paths) seconds(err error) (float64, error) { return p.out.Seconds, err }

// target is the next one.
func (p *paths) target() *raw.Address {
	p.next = (p.next + 7919) % len(p.targets) // a prime: neighbours are not dialled one after the other
	return p.targets[p.next]
}

// used is the processor time of this thread. What the kernel does for the packets that it
// sends it does on its time, from here to the server's socket and back; and that somebody
// else has the processor for a while does not count.
func used() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// mostWait is how many times longer than planned a block may take where somebody else has
// the processor.
const mostWait = 8

// enough returns a function that says whether a thread that began now has worked for d, or
// has waited for too long.
func enough(d time.Duration) func() bool {
	begin := time.Now()
	before, _ := used()
	return func() bool {
		now, err := used()
		return err != nil || now-before >= d || time.Since(begin) >= mostWait*d
	}
}

// costs adds what f uses to out.
func (p *paths) costs(f func() error) error {
	begin := time.Now()
	before, err := used()
	if err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	after, err := used()
	p.out.Seconds += (after - before).Seconds()
	p.out.Wall += time.Since(begin).Seconds()
	return err
}

// connect makes n connections, each of which ends with a reset. The cost is that of the
// whole of it, from a socket to its end; the histogram has how long connect took.
func (p *paths) connect(n int) error {
	if p.out.Connect == nil {
		p.out.Connect = result.NewHistogram()
	}
	took := make([]time.Duration, 0, n)
	err := p.costs(func() error {
		for range n {
			d, err := p.connectOnce(p.target())
			if err != nil {
				return err
			}
			took = append(took, d)
		}
		return nil
	})
	p.out.Requests += uint64(n)
	for _, d := range took {
		note(p.out.Connect, d.Seconds())
	}
	return err
}

// connectOnce makes one connection. That it fails counts, and is no error.
func (p *paths) connectOnce(to *raw.Address) (time.Duration, error) {
	fd, err := to.Socket(unix.SOCK_STREAM)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := raw.SetReset(fd); err != nil {
		return 0, err
	}
	begin := time.Now()
	err = to.Connect(fd)
	took := time.Since(begin)
	if kind := kindOf(err); kind != "" {
		p.out.Failed[kind]++
	}
	return took, nil
}

// exchange makes round trips of one byte on one connection.
func (p *paths) exchange(d time.Duration) error {
	fd, err := p.target().DialTCP()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p.out.Latency = result.NewHistogram()
	b := make([]byte, 1)
	begin, done := time.Now(), enough(d/2) // the server has the other half
	for now := begin; p.out.Requests%64 != 0 || !done(); {
		if err := raw.Transfer(unix.SYS_WRITE, fd, b); err != nil {
			return err
		}
		if err := raw.Transfer(unix.SYS_READ, fd, b); err != nil {
			return err
		}
		then := now
		now = time.Now()
		note(p.out.Latency, now.Sub(then).Seconds())
		p.out.Requests++
	}
	p.out.Wall = time.Since(begin).Seconds()
	p.out.Bytes = 2 * p.out.Requests
	return nil
}

// stream sends as much as goes on one connection.
func (p *paths) stream(d time.Duration) error {
	fd, err := p.target().DialTCP()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p.out.Requests = 1
	b := make([]byte, 1<<17)
	begin, done := time.Now(), enough(d/2) // the server has the other half
	for !done() {
		if err := raw.Transfer(unix.SYS_WRITE, fd, b); err != nil {
			return err
		}
		p.out.Bytes += uint64(len(b))
	}
	p.out.Wall = time.Since(begin).Seconds()
	return nil
}

// packets sends datagrams of 64 bytes from one socket.
func (p *paths) packets(d time.Duration) error {
	to := p.target()
	fd, err := to.Socket(unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := to.Connect(fd); err != nil {
		return err
	}
	b := make([]byte, 64)
	done := enough(d)
	return p.costs(func() error {
		for !done() {
			for range 16 { // between two looks at the clock
				if err := raw.Transfer(unix.SYS_WRITE, fd, b); err != nil {
					return err
				}
			}
			p.out.Requests += 16
			p.out.Bytes += 16 * uint64(len(b))
		}
		return nil
	})
}

// serviceBackend is the address of a Service's backend where there are many Services.
func serviceBackend(service, backends, backend int) netip.AddrPort {
	return netip.AddrPortFrom(node.Plus(firstBackend, service*backends+backend), backendPort)
}
