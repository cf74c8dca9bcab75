// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/bench/internal/raw"
)

// server is the serving part of a worker.
type server struct {
	backlog int // listening socket of portBacklog
}

func (s *server) serve() (err error) {
	if s.backlog, err = raw.Listen(portBacklog); err != nil {
		return err
	}
	if err := unix.SetNonblock(s.backlog, true); err != nil {
		return fmt.Errorf("backlog: %w", err)
	}
	for port, handle := range map[uint16]func(fd int){portEcho: raw.Echo, portSink: raw.Sink} {
		fd, err := raw.Listen(port)
		if err != nil {
			return err
		}
		go raw.Accept(fd, handle)
	}
	return nil
}

// drain takes what has piled up. While clients connect nobody accepts, so no
// thread of the server is woken on their time.
func (s *server) drain() (result, error) {
	for n := 0; ; n++ {
		fd, _, err := unix.Accept4(s.backlog, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) {
			return result{N: n}, nil
		}
		if err != nil && !errors.Is(err, unix.ECONNABORTED) {
			return result{}, fmt.Errorf("accept: %w", err)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
}

// quantile of sorted durations, in ns.
func quantile(sorted []time.Duration, q float64) float64 {
	return float64(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)].Nanoseconds())
}

// connectMany measures connect() of a blocking TCP socket: the handshake with
// what the dataplane adds.
func connectMany(o order) (result, error) {
	to := raw.AddressOf(o.To)
	took, cycle := make([]time.Duration, o.N), make([]time.Duration, o.N)
	for i := range o.N {
		begin := time.Now()
		fd, err := to.Socket(unix.SOCK_STREAM)
		if err == nil {
			err = raw.SetReset(fd)
		}
		if err != nil {
			return result{}, err
		}
		before := time.Now()
		err = to.Connect(fd)
		took[i] = time.Since(before)
		unix.Close(fd)
		if err != nil {
			return result{}, err
		}
		cycle[i] = time.Since(begin)
	}
	slices.Sort(took)
	slices.Sort(cycle)
	return result{P50: quantile(took, 0.5), P99: quantile(took, 0.99), Cycle: quantile(cycle, 0.5)}, nil
}

// udpConnectMany measures connect() of a new UDP socket: no packet is sent, so
// what remains is the route and the dataplane.
func udpConnectMany(o order) (result, error) {
	to := raw.AddressOf(o.To)
	took, cycle := make([]time.Duration, o.N), make([]time.Duration, o.N)
	for i := range o.N {
		begin := time.Now()
		fd, err := to.Socket(unix.SOCK_DGRAM)
		if err != nil {
			return result{}, err
		}
		before := time.Now()
		err = to.Connect(fd)
		took[i] = time.Since(before)
		unix.Close(fd)
		if err != nil {
			return result{}, err
		}
		cycle[i] = time.Since(begin)
	}
	slices.Sort(took)
	slices.Sort(cycle)
	return result{P50: quantile(took, 0.5), P99: quantile(took, 0.99), Cycle: quantile(cycle, 0.5)}, nil
}

// udpReconnect measures connect() of one UDP socket again and again, in batches
// that make the clock's own cost small.
func udpReconnect(o order) (result, error) {
	const batch = 16
	to := raw.AddressOf(o.To)
	fd, err := to.Socket(unix.SOCK_DGRAM)
	if err != nil {
		return result{}, err
	}
	defer unix.Close(fd)
	took := make([]time.Duration, max(o.N/batch, 1))
	for i := range took {
		begin := time.Now()
		for range batch {
			if err := to.Connect(fd); err != nil {
				return result{}, err
			}
		}
		took[i] = time.Since(begin) / batch
	}
	slices.Sort(took)
	return result{P50: quantile(took, 0.5), P99: quantile(took, 0.99)}, nil
}

// exchangeMany measures round trips of one byte on an established connection.
func exchangeMany(o order) (result, error) {
	fd, err := raw.AddressOf(o.To).DialTCP()
	if err != nil {
		return result{}, err
	}
	defer unix.Close(fd)
	warm := min(o.N/10, 100)
	b, took := make([]byte, 1), make([]time.Duration, 0, o.N)
	for i := range o.N + warm {
		begin := time.Now()
		err := raw.Transfer(unix.SYS_WRITE, fd, b)
		if err == nil {
			err = raw.Transfer(unix.SYS_READ, fd, b)
		}
		if err != nil {
			return result{}, err
		}
		if i >= warm {
			took = append(took, time.Since(begin))
		}
	}
	slices.Sort(took)
	return result{P50: quantile(took, 0.5), P99: quantile(took, 0.99)}, nil
}

// stream sends for o.For, after a start that does not count for the rate but for
// the processor time.
func stream(o order) (result, error) {
	before, err := usage()
	if err != nil {
		return result{}, err
	}
	fd, err := raw.AddressOf(o.To).DialTCP()
	if err != nil {
		return result{}, err
	}
	defer unix.Close(fd)
	b := make([]byte, 1<<17)
	send := func(d time.Duration) (bytes float64, err error) {
		for begin := time.Now(); err == nil && time.Since(begin) < d; bytes += float64(len(b)) {
			err = raw.Transfer(unix.SYS_WRITE, fd, b)
		}
		return bytes, err
	}
	start, err := send(o.For / 4)
	if err != nil {
		return result{}, err
	}
	begin := time.Now()
	bytes, err := send(o.For)
	if err != nil {
		return result{}, err
	}
	took := time.Since(begin).Seconds()
	after, err := usage()
	return result{Bytes: bytes, Total: start + bytes, Seconds: took, CPU: after.CPU - before.CPU}, err
}
