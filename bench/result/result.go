// SPDX-License-Identifier: Apache-2.0

// Package result is what a bench run leaves: raw numbers, from which reports are made. The
// lab writes it, the simulator adds to it, the report reads it. Times are seconds, CPU is
// seconds of one processor, sizes are bytes.
package result

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/bench/internal/stats"
)

// File is everything of one run.
type File struct {
	Command   []string          `json:"command"` // that repeats it
	Commit    string            `json:"commit"`
	Machine   observe.Machine   `json:"machine"`
	Knobs     map[string]string `json:"knobs"`              // what was frozen: sysctls, CPUs, versions of the peers
	Quick     bool              `json:"quick,omitempty"`    // a smoke run: the numbers say nothing
	Warnings  []string          `json:"warnings,omitempty"` // sentences, such as that two direct halves differ
	Scenarios []Scenario        `json:"scenarios,omitempty"`
	Scales    []Scale           `json:"scales,omitempty"`
	Rows      []Row             `json:"rows,omitempty"`
}

// Scenario is one scenario file, run with several arms.
type Scenario struct {
	Name     string  `json:"name"`
	Question string  `json:"question"` // that it answers
	About    string  `json:"about"`
	File     string  `json:"file"`           // below the repository
	Mode     string  `json:"mode,omitempty"` // open, closed or fast; empty: of an older run
	Events   []Event `json:"events"`         // changes and failures, in every block at the same time
	Arms     []Arm   `json:"arms"`
	// Order is which arm ran when: indexes into Arms, as ABCCBA.
	Order []int `json:"order"`
}

// Fast is the Mode of a scenario whose requests follow each other as fast as they can. In
// open ones they come when they are meant to, in closed ones a worker waits for the answer
// to its last.
const Fast = "fast"

// Event is something that happened to the backends or the balancing.
type Event struct {
	At   float64 `json:"at"` // since the block began
	What string  `json:"what"`
}

// Arm is one proxy with one algorithm, or the simulator of it.
type Arm struct {
	Name      string  `json:"name"`      // direct, lbproxy-ebpf, lbproxy-iptables, kube-proxy-iptables, kube-proxy-nftables, nginx, haproxy, simulator
	Algorithm string  `json:"algorithm"` // as the proxy calls it; empty for direct
	Blocks    []Block `json:"blocks"`
	Note      string  `json:"note,omitempty"` // of the simulator: why its model does not apply
}

// Label names an arm in tables and plots.
func (a *Arm) Label() string {
	if a.Algorithm == "" {
		return a.Name
	}
	return a.Name + " " + a.Algorithm
}

// Block is one measurement of one arm.
type Block struct {
	// Seconds is how long it was. Where client and server share a processor and go as
	// fast as they can, it is the processor time that the path used, so that Requests or
	// Bytes over Seconds is a rate per processor, whoever else wants the processor.
	Seconds  float64        `json:"seconds"`
	Requests uint64         `json:"requests"` // that were meant to begin
	Failed   map[string]int `json:"failed"`   // by kind: refused, reset, timeout, ...
	// Connect is from a connection's intended start until it was open, Latency from a
	// request's intended start until its last byte.
	Connect  *Histogram       `json:"connect,omitempty"`
	Latency  *Histogram       `json:"latency,omitempty"`
	Backends []Backend        `json:"backends"` // as counted by the servers
	Windows  []Window         `json:"windows,omitempty"`
	CPU      float64          `json:"cpu"`              // of the whole lab without what servers slept
	Memory   uint64           `json:"memory,omitempty"` // resident, of the proxy
	Bytes    uint64           `json:"bytes,omitempty"`  // of payload, both ways
	Moved    *float64         `json:"moved,omitempty"`  // hash: part of the clients whose backend changed, 0..1
	Extra    map[string]Value `json:"extra,omitempty"`  // measures of a scenario of its own, such as failover
}

// Value is a number with its unit.
type Value struct {
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// Backend is what one server counted.
type Backend struct {
	Name     string  `json:"name"`
	Group    string  `json:"group"`
	Weight   float64 `json:"weight"`
	Requests uint64  `json:"requests"`
}

// Window is a piece of a block, by intended start.
type Window struct {
	Start    float64            `json:"start"`
	Requests uint64             `json:"requests"`
	Failed   uint64             `json:"failed"`
	P50      float64            `json:"p50"`
	P99      float64            `json:"p99"`
	Share    map[string]float64 `json:"share,omitempty"` // of the requests, by group of backends, 0..1
}

// Scale is one measure against a number, such as that of Services.
type Scale struct {
	Name   string   `json:"name"` // such as first packet
	Unit   string   `json:"unit"`
	X      string   `json:"x"` // such as Services
	Series []Series `json:"series"`
}

// Series is one curve of a Scale.
type Series struct {
	Arm    string  `json:"arm"`
	Points []Point `json:"points"`
}

// Point has one value for each block.
type Point struct {
	X      float64   `json:"x"`
	Values []float64 `json:"values"`
}

// Row is a series of blocks outside of scenarios, most often against a baseline that was
// measured in the same blocks.
type Row struct {
	Group  string         `json:"group"`
	Name   string         `json:"name"`
	Unit   string         `json:"unit"` // of Values and Base
	Values []float64      `json:"values"`
	Base   []float64      `json:"base,omitempty"`
	How    string         `json:"how"` // what Result is of: one of the constants below
	Result stats.Estimate `json:"result"`
	Target string         `json:"target,omitempty"`
	Met    string         `json:"met,omitempty"` // yes, no, or open: the interval contains the limit
}

// The ways to compare a Row's values with its baseline.
const (
	AsValue      = "value"
	AsDifference = "difference" // value - base
	AsRatio      = "ratio"      // value / base
	AsInverse    = "inverse"    // base / value: for times, so that 1 is as good as base
)

// Histogram holds nanoseconds, 1 us to 10 min, with three significant digits.
type Histogram struct{ *hdrhistogram.Histogram }

// NewHistogram returns an empty one.
func NewHistogram() *Histogram {
	return &Histogram{hdrhistogram.New(1_000, 600_000_000_000, 3)}
}

// MarshalJSON writes the compressed form of HdrHistogram, V2, in base 64.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	b, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		return nil, fmt.Errorf("histogram: %w", err)
	}
	return json.Marshal(string(b))
}

// UnmarshalJSON reads what MarshalJSON writes.
func (h *Histogram) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("histogram: %w", err)
	}
	in, err := hdrhistogram.Decode([]byte(s))
	if err != nil {
		return fmt.Errorf("histogram: %w", err)
	}
	h.Histogram = in
	return nil
}

// Read reads a file that observe.Save wrote.
func Read(path string) (*File, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("bench result: %w", err)
	}
	f := &File{}
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("bench result %s: %w", path, err)
	}
	return f, nil
}
