// SPDX-License-Identifier: Apache-2.0

package live

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/bench/internal/node"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

// patience is how long a request waits if the scenario does not say.
const patience = 10 * time.Second

// record is what became of one request. Times are seconds.
type record struct {
	at      float64 // since the start: when it should have begun
	late    float64 // how much later it did
	connect float64 // until it was connected; 0: never
	took    float64 // until its last byte, or until it was given up
	backend int     // that answered; -1: none did
	client  int
	failure string // its kind; empty: it was answered
}

// crowd is all clients of a block.
type crowd struct {
	order
	chooser *chooser // nil: something else chooses
	limit   time.Duration
	all     []scenario.Arrival
	records []record
	wg      sync.WaitGroup
}

// load makes the requests of a scenario. In the open loop each begins when it should,
// whether others are under way or not, and its times count from then.
func load(o order) (*outcome, error) {
	sc := o.Scenario
	c := &crowd{order: o, limit: limitOf(sc), all: sc.Schedule(sc.Load[0])}
	if o.Direct {
		c.chooser = newChooser(sc, o.Rule)
	}
	if sc.Live.Mode == "closed" {
		c.closed(sc.Live.Workers)
	} else {
		c.open()
	}
	return summarize(sc, c.records), nil
}

// limitOf is how long a client waits for an answer.
func limitOf(sc *scenario.Scenario) time.Duration {
	if t := time.Duration(sc.Timeout); t > 0 {
		return t
	}
	return patience
}

func (c *crowd) open() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sharpen()
	c.records = make([]record, len(c.all))
	for i, a := range c.all {
		due := c.Start.Add(time.Duration(a.At * float64(time.Second)))
		sleepUntil(due)
		c.wg.Go(func() { c.records[i] = c.request(i, due) })
	}
	c.wg.Wait()
}

// sleepUntil is more exact than time.Sleep, which may be a millisecond late.
func sleepUntil(t time.Time) {
	for d := time.Until(t); d > 0; d = time.Until(t) {
		ts := unix.NsecToTimespec(d.Nanoseconds())
		_ = unix.Nanosleep(&ts, nil) // interrupted: it sleeps again
	}
}

// closed has each worker make the next request when it has an answer, as long as the
// requests would take to come.
func (c *crowd) closed(workers int) {
	var next atomic.Int64
	var mu sync.Mutex
	var made []record
	sleepUntil(c.Start)
	end := c.Start.Add(time.Duration(c.all[len(c.all)-1].At * float64(time.Second)))
	for range workers {
		c.wg.Go(func() {
			for now := time.Now(); now.Before(end); now = time.Now() {
				i := int(next.Add(1)) - 1
				if i >= len(c.all) {
					return
				}
				r := c.request(i, now)
				mu.Lock()
				made = append(made, r)
				mu.Unlock()
			}
		})
	}
	c.wg.Wait()
	c.records = made
}

// request makes one.
func (c *crowd) request(i int, due time.Time) record {
	a := c.all[i]
	r := record{at: due.Sub(c.Start).Seconds(), backend: -1, client: a.Client, late: time.Since(due).Seconds()}
	to := c.Targets[0]
	if c.chooser != nil {
		k := c.chooser.enter(r.at)
		if k < 0 {
			r.failure = "none"
			return r
		}
		defer c.chooser.leave(k)
		to = c.Targets[k]
	}
	exchange := c.connection
	if c.Scenario.Live.Traffic == scenario.UDP {
		exchange = c.datagram
	}
	err := exchange(&r, to, due, requestOf(a.Work, uint64(i)))
	r.took = time.Since(due).Seconds()
	r.failure = kindOf(err)
	return r
}

// requestOf is what a client sends.
func requestOf(work float64, id uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, math.Float64bits(work))
	return binary.BigEndian.AppendUint64(b, id)
}

// source is the address of a client.
func (c *crowd) source(client int) netip.Addr {
	if !c.Sources.IsValid() {
		return netip.IPv4Unspecified()
	}
	return node.Plus(c.Sources, client)
}

// connection makes the request on a connection of its own.
func (c *crowd) connection(r *record, to netip.AddrPort, due time.Time, request []byte) error {
	d := net.Dialer{Deadline: due.Add(c.limit), Control: c.bindLater(r.client), KeepAlive: -1}
	conn, err := d.Dial("tcp4", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	r.connect = time.Since(due).Seconds()
	if err := conn.SetDeadline(due.Add(c.limit)); err != nil {
		return err
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	var answer [2]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	r.backend = int(binary.BigEndian.Uint16(answer[:]))
	return nil
}

// datagram makes the request from a socket of its own.
func (c *crowd) datagram(r *record, to netip.AddrPort, due time.Time, request []byte) error {
	d := net.Dialer{Deadline: due.Add(c.limit), Control: c.bindLater(r.client)}
	conn, err := d.Dial("udp4", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(due.Add(c.limit)); err != nil {
		return err
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	var answer [10]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	r.backend = int(binary.BigEndian.Uint16(answer[:]))
	return nil
}

// bindLater gives a socket its client's address, and leaves the port to connect: so many
// as there are may go to each backend.
func (c *crowd) bindLater(client int) func(string, string, syscall.RawConn) error {
	from := c.source(client)
	if from.IsUnspecified() {
		return nil
	}
	return func(_, _ string, rc syscall.RawConn) error {
		var err error
		cerr := rc.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
				unix.Bind(int(fd), &unix.SockaddrInet4{Addr: from.As4()}))
		})
		return errors.Join(cerr, err)
	}
}

// kindOf names a failure.
func kindOf(err error) string {
	var timeout net.Error
	switch {
	case err == nil:
		return ""
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return "reset"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, unix.ETIMEDOUT),
		errors.As(err, &timeout) && timeout.Timeout():
		return timedOut
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return "unreachable"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed"
	}
	return "other"
}

const timedOut = "timeout"

// warm makes requests to every target until each was answered once. They are like any
// other: who measures latencies remembers them.
func warm(o order) error {
	c := &crowd{order: o, limit: patience}
	c.all = []scenario.Arrival{{Work: o.Scenario.Service.Mean.Seconds()}}
	for _, to := range o.Targets {
		c.Targets = []netip.AddrPort{to}
		var last record
		for deadline := time.Now().Add(2 * patience); ; {
			if last = c.request(0, time.Now()); last.failure == "" {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s does not answer: %s", to, last.failure)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}
