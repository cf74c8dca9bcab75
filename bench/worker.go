// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	envWorker = "LBPROXY_BENCH_WORKER"
	envRootNS = "LBPROXY_BENCH_ROOT_NETNS" // where a worker must not be
)

// The ports of a server worker.
const (
	portBacklog = 7001 // connections wait until the verb drain takes them
	portEcho    = 7002
	portSink    = 7003
)

// The verbs of a worker.
const (
	verbServe     = "serve"         // the three ports
	verbDrain     = "drain"         // accept and close everything on portBacklog
	verbPin       = "pin"           // all threads to one processor
	verbUsage     = "usage"         // of processor time since the start
	verbConnect   = "connect"       // N TCP connections, one after the other
	verbUDP       = "udp-connect"   // N UDP sockets that connect once
	verbReconnect = "udp-reconnect" // one UDP socket that connects N times
	verbRR        = "rr"            // N exchanges of one byte on one connection
	verbStream    = "stream"        // For so long, as much as goes
	verbQueues    = "queues"        // a queue for each Slowdown, on the ports from portQueue on
	verbOpenLoop  = "open-loop"     // N requests at Rate, each in need of For on average
)

// order is one line to a worker.
type order struct {
	Verb string
	To   netip.AddrPort `json:",omitzero"`
	N    int            `json:",omitempty"`
	For  time.Duration  `json:",omitempty"`
	CPU  int            `json:",omitempty"`

	Targets  []netip.AddrPort `json:",omitempty"`
	Rate     float64          `json:",omitempty"` // a second
	Seed     uint64           `json:",omitempty"`
	Slowdown []float64        `json:",omitempty"`
}

// result is one line from a worker.
type result struct {
	Err     string  `json:",omitempty"`
	P50     float64 `json:",omitempty"` // ns, of the measured call
	P99     float64 `json:",omitempty"`
	Cycle   float64 `json:",omitempty"` // ns, p50 of socket to close
	Bytes   float64 `json:",omitempty"`
	Seconds float64 `json:",omitempty"`
	Total   float64 `json:",omitempty"` // bytes, with those outside of Seconds
	CPU     float64 `json:",omitempty"` // processor seconds
	N       int     `json:",omitempty"`
	Mean    float64 `json:",omitempty"` // ns
	Counts  []int   `json:",omitempty"` // requests of each target
}

// worker is a process in a host of a lab, in that host's namespace and cgroup.
type worker struct {
	host string
	cmd  *exec.Cmd
	in   *json.Encoder
	out  *json.Decoder
}

// netnsID names the network namespace of this thread.
func netnsID() (string, error) {
	id, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return "", fmt.Errorf("network namespace: %w", err)
	}
	return id, nil
}

func startWorker(ctx context.Context, h *lab.Host) (*worker, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	root, err := netnsID()
	if err != nil {
		return nil, err
	}
	cmd := h.Command(ctx, exe)
	cmd.Env = append(os.Environ(), envWorker+"=1", envRootNS+"="+root)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	return &worker{host: h.Name, cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(out)}, nil
}

// do has the worker carry out o.
func (w *worker) do(o order) (result, error) {
	var r result
	err := w.in.Encode(o)
	if err == nil {
		err = w.out.Decode(&r)
	}
	if err == nil && r.Err != "" {
		err = errors.New(r.Err)
	}
	if err != nil {
		return r, fmt.Errorf("worker on %s: %s %s: %w", w.host, o.Verb, o.To, err)
	}
	return r, nil
}

// stop ends the worker.
func (w *worker) stop() {
	_ = w.cmd.Process.Kill() // an error says that it has ended already
	_ = w.cmd.Wait()         // killed: there is no other way for it to end
}

// workerMain is this program's life as a worker. It returns at once in a process
// that is none.
func workerMain() {
	if os.Getenv(envWorker) != "1" {
		return
	}
	if err := work(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench worker:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// work carries out orders until in ends. The measuring thread is never taken away
// by the runtime: it has its own P, and nothing is collected.
func work(in io.Reader, out io.Writer) error {
	if own, err := netnsID(); err != nil || own == os.Getenv(envRootNS) {
		return fmt.Errorf("refused: not in a lab's network namespace (%w)", err)
	}
	runtime.GOMAXPROCS(16)
	debug.SetGCPercent(-1)
	runtime.LockOSThread()
	s := &server{}
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read order: %w", err)
		}
		r, err := s.carryOut(o)
		if err != nil {
			r.Err = err.Error()
		}
		if err := enc.Encode(r); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
}

func (s *server) carryOut(o order) (result, error) {
	switch o.Verb {
	case verbServe:
		return result{}, s.serve()
	case verbDrain:
		return s.drain()
	case verbPin:
		return result{}, pin(o.CPU)
	case verbUsage:
		return usage()
	case verbConnect:
		return connectMany(o)
	case verbUDP:
		return udpConnectMany(o)
	case verbReconnect:
		return udpReconnect(o)
	case verbRR:
		return exchangeMany(o)
	case verbStream:
		return stream(o)
	case verbQueues:
		return result{}, s.queues.start(o.Slowdown)
	case verbOpenLoop:
		return openLoop(o)
	}
	return result{}, fmt.Errorf("unknown verb %q", o.Verb)
}

// pin moves every thread of this process to one processor.
func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu % runtime.NumCPU())
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return fmt.Errorf("pin: %w", err)
		}
		if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pin thread %d: %w", tid, err)
		}
	}
	return nil
}

func usage() (result, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return result{}, fmt.Errorf("usage: %w", err)
	}
	return result{CPU: time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()}, nil
}
