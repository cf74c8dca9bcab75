// SPDX-License-Identifier: Apache-2.0

// Package live runs scenarios in a lab: real sockets, proxies, and time. The processes that
// serve and that dial are workers in hosts of the lab; nothing is sent outside of it.
package live

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/node"
	"github.com/lbproxy/lbproxy/bench/internal/worker"
	"github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

// workerKind is what this program's workers are started as.
const workerKind = "live"

// Main is this program's life as a worker, or as a program that a kube-proxy calls. It
// returns at once in a process that is neither.
func Main() {
	worker.Main(workerKind, newHand)
	node.AidMain()
}

// The verbs of a worker.
const (
	verbServe   = "serve"   // what the scenario's traffic needs
	verbBegin   = "begin"   // at Start, with the backends as they are in the beginning
	verbEnd     = "end"     // everything, and tell what was counted
	verbWarm    = "warm"    // one request to each target has been answered
	verbLoad    = "load"    // the whole of the scenario's requests, from Start on
	verbPin     = "pin"     // all threads to one processor
	verbConnect = "connect" // N connections, which the server takes afterwards
	verbDrain   = "drain"   // take them
	verbCollect = "collect" // tell what connect measured
	verbPath    = "path"    // exchange, stream or packets, for the scenario's time
)

// order is one line to a worker.
type order struct {
	Verb     string
	Scenario *scenario.Scenario `json:",omitempty"`
	Start    time.Time          `json:",omitzero"`
	CPU      int                `json:",omitempty"`
	N        int                `json:",omitempty"`

	Targets []netip.AddrPort `json:",omitempty"`
	Direct  bool             `json:",omitempty"` // Targets are the backends, in their order
	Rule    string           `json:",omitempty"` // by which the client takes one of them; empty: in turn
	Sources netip.Addr       `json:",omitzero"`  // the address of client 0, which others follow; none: all have the host's
}

// counts is what a server says at the end.
type counts struct {
	Backends  []uint64 // requests that were read, or connections that were taken
	Delivered uint64   // datagrams
}

// outcome is what a client says of a block.
type outcome struct {
	Seconds  float64 // result.Block.Seconds
	Wall     float64 // on the clock
	Requests uint64
	Failed   map[string]int
	Connect  *result.Histogram `json:",omitempty"`
	Latency  *result.Histogram `json:",omitempty"`
	Windows  []result.Window   `json:",omitempty"`
	Bytes    uint64
	Moved    *float64 `json:",omitempty"`
	Returned *float64 `json:",omitempty"` // of the clients, those that are not where they were, when all backends are back
	Late     float64  // p99 of how much later requests began than they should
}

// hand carries out orders.
type hand struct {
	farm  *farm
	fast  *fast
	paths *paths
}

func newHand() func(order) (any, error) {
	h := &hand{}
	return h.carryOut
}

func (h *hand) carryOut(o order) (any, error) {
	now := time.Now()
	o.Start = now.Add(o.Start.Sub(now)) // by a clock that is not set meanwhile
	switch o.Verb {
	case verbServe:
		return nil, h.serve(o)
	case verbPin:
		return nil, worker.Pin(o.CPU)
	case verbWarm:
		return nil, warm(o)
	case verbLoad:
		return load(o)
	case verbConnect, verbPath:
		if h.paths == nil {
			h.paths = newPaths()
		}
		return h.paths.measure(o)
	case verbCollect:
		out := h.paths.out
		h.paths = nil
		return out, nil
	}
	switch {
	case h.fast != nil && o.Verb == verbDrain:
		return nil, h.fast.drain()
	case h.fast != nil && o.Verb == verbEnd:
		return h.fast.end()
	case h.farm != nil && o.Verb == verbBegin:
		return nil, h.farm.begin(o.Start)
	case h.farm != nil && o.Verb == verbEnd:
		return h.farm.end(), nil
	}
	return nil, fmt.Errorf("unknown verb %q", o.Verb)
}

func (h *hand) serve(o order) (err error) {
	if h.farm != nil || h.fast != nil {
		return errors.New("serves already")
	}
	if o.Scenario.Live.Paced() {
		h.farm, err = newFarm(o.Scenario)
	} else {
		h.fast, err = newFast(o.Scenario)
	}
	return err
}

// The ports and addresses of backends and Services.
const (
	backendPort  = 8080
	frontendPort = 80
	nodePort     = 30080
	peerPort     = 8000 // of a peer's first algorithm
)

var (
	podRange     = netip.MustParsePrefix("10.128.0.0/9")
	firstBackend = netip.MustParseAddr("10.128.0.1")
	firstVIP     = netip.MustParseAddr("10.96.0.1")
	firstSource  = netip.MustParseAddr("10.146.0.1")
	backendRange = netip.MustParsePrefix("10.128.0.0/12")
	sourceRange  = netip.MustParsePrefix("10.146.0.0/15")
)
