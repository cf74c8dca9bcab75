// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/worker"
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
)

// order is one line to a worker.
type order struct {
	Verb string
	To   netip.AddrPort `json:",omitzero"`
	N    int            `json:",omitempty"`
	For  time.Duration  `json:",omitempty"`
	CPU  int            `json:",omitempty"`
}

// result is one line from a worker.
type result struct {
	P50     float64 `json:",omitempty"` // ns, of the measured call
	P99     float64 `json:",omitempty"`
	Cycle   float64 `json:",omitempty"` // ns, p50 of socket to close
	Bytes   float64 `json:",omitempty"`
	Seconds float64 `json:",omitempty"`
	Total   float64 `json:",omitempty"` // bytes, with those outside of Seconds
	CPU     float64 `json:",omitempty"` // processor seconds
	N       int     `json:",omitempty"`
}

// hand is a worker of this bench.
type hand struct{ *worker.Worker }

// do has the worker carry out o.
func (h hand) do(o order) (result, error) {
	var r result
	if err := h.Do(o, &r); err != nil {
		return r, fmt.Errorf("%s %s: %w", o.Verb, o.To, err)
	}
	return r, nil
}

// workerKind is what this program's workers are started as.
const workerKind = "path"

// newServer is what carries out orders. The measuring thread is never taken away by the
// runtime: it has its own P, and nothing is collected.
func newServer() func(order) (any, error) {
	runtime.GOMAXPROCS(16)
	debug.SetGCPercent(-1)
	s := &server{}
	return func(o order) (any, error) { return s.carryOut(o) }
}

func (s *server) carryOut(o order) (result, error) {
	switch o.Verb {
	case verbServe:
		return result{}, s.serve()
	case verbDrain:
		return s.drain()
	case verbPin:
		return result{}, worker.Pin(o.CPU)
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
	}
	return result{}, fmt.Errorf("unknown verb %q", o.Verb)
}

func usage() (result, error) {
	used, err := worker.Usage()
	return result{CPU: used.Seconds()}, err
}
