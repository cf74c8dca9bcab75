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
	taken     map[netip.Addr]uint64
	delivered uint64 // datagrams, before the block
	number    int    // of backends
}

func newFast(sc *scenario.Scenario) (*fast, error) {
	f := &fast{backlog: -1, taken: map[netip.Addr]uint64{}}
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

// takePackets opens a socket that nobody reads: what reaches it counts.
func (f *fast) takePackets() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: backendPort})
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

// measure carries out an order; what it measured is added to out.
func (p *paths) measure(o order) (any, error) {
	if p.targets == nil {
		for _, to := range o.Targets {
			p.targets = append(p.targets, raw.AddressOf(to))
		}
	}
	if o.Verb == verbConnect {
		return nil, p.connect(o.N)
	}
	spec := o.Scenario.Live
	d := time.Duration(spec.Seconds)
	switch spec.Traffic {
	case scenario.Exchange:
		return nil, p.exchange(d)
	case scenario.Streamed:
		return nil, p.stream(d)
	}
	return nil, p.packets(d)
}

// target is the next one.
func (p *paths) target() *raw.Address {
	p.next = (p.next + 7919) % len(p.targets) // a prime: neighbours are not dialled one after the other
	return p.targets[p.next]
}

// connect makes n connections, each of which ends with a reset. The time is that of the
// whole of it, from a socket to its end, and of connect in the histogram.
func (p *paths) connect(n int) error {
	if p.out.Connect == nil {
		p.out.Connect = result.NewHistogram()
	}
	took := make([]time.Duration, 0, n)
	begin := time.Now()
	for range n {
		to := p.target()
		fd, err := to.Socket(unix.SOCK_STREAM)
		if err == nil {
			err = raw.SetReset(fd)
		}
		if err != nil {
			return err
		}
		before := time.Now()
		err = to.Connect(fd)
		took = append(took, time.Since(before))
		unix.Close(fd)
		if kind := kindOf(err); kind != "" {
			p.out.Failed[kind]++
		}
	}
	p.out.Seconds += time.Since(begin).Seconds()
	p.out.Requests += uint64(n)
	for _, d := range took {
		note(p.out.Connect, d.Seconds())
	}
	return nil
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
	begin := time.Now()
	for now := begin; now.Sub(begin) < d; {
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
	p.out.Seconds = time.Since(begin).Seconds()
	p.out.Bytes = 2 * p.out.Requests
	return nil
}

// stream sends as much as goes on one connection, after a start that does not count.
func (p *paths) stream(d time.Duration) error {
	fd, err := p.target().DialTCP()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := make([]byte, 1<<17)
	send := func(d time.Duration) (bytes uint64, took time.Duration, err error) {
		begin := time.Now()
		for took < d && err == nil {
			err = raw.Transfer(unix.SYS_WRITE, fd, b)
			bytes += uint64(len(b))
			took = time.Since(begin)
		}
		return bytes, took, err
	}
	if _, _, err := send(d / 4); err != nil {
		return err
	}
	bytes, took, err := send(d)
	p.out.Bytes, p.out.Seconds, p.out.Requests = bytes, took.Seconds(), 1
	return err
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
	begin := time.Now()
	for time.Since(begin) < d {
		for range 16 { // between two looks at the clock
			if err := raw.Transfer(unix.SYS_WRITE, fd, b); err != nil {
				return err
			}
		}
		p.out.Requests += 16
	}
	p.out.Seconds = time.Since(begin).Seconds()
	p.out.Bytes = p.out.Requests * uint64(len(b))
	return nil
}

// serviceBackend is the address of a Service's backend where there are many Services.
func serviceBackend(service, backends, backend int) netip.AddrPort {
	return netip.AddrPortFrom(node.Plus(firstBackend, service*backends+backend), backendPort)
}
