// SPDX-License-Identifier: Apache-2.0

// Package scenario is what the simulator and the lab run: arrivals, work, backends, and what
// happens to them. docs/SIMULATOR.md describes the fields.
package scenario

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"
)

// Scenario is one file of bench/scenarios: what happens, with which algorithms, and what
// is expected of them. Each combination of Load and Nodes is one case of the simulator;
// each case is run with each algorithm, on the same arrivals and the same work.
type Scenario struct {
	Name     string `json:"name"`     // letters, digits and dashes
	Question string `json:"question"` // that the lab's run answers
	About    string `json:"about"`    // a sentence or two
	// NotSimulated says why the simulator does not run it; empty: it does.
	NotSimulated string `json:"notSimulated,omitempty"`
	Seed         uint64 `json:"seed"`
	Requests     int    `json:"requests"` // of a run
	// Warmup is the part of the requests, 0..1, that come before measuring.
	Warmup     float64     `json:"warmup"`
	Load       []float64   `json:"load"`  // of the capacity at the start; 0.8 is 80 %
	Nodes      []int       `json:"nodes"` // that balance, each with what it sees itself; default 1
	Backends   []Group     `json:"backends"`
	Arrivals   Arrivals    `json:"arrivals"`
	Service    Service     `json:"service"`
	Discipline string      `json:"discipline"` // fcfs (default) or ps
	Delay      Duration    `json:"delay"`      // network round trip between node and backend
	Timeout    Duration    `json:"timeout"`    // after which a client gives up; 0: never
	Signal     string      `json:"signal"`     // of least-time: connect, first-byte or last-byte (default)
	SlowStart  Duration    `json:"slowStart"`  // of a backend that is added; 0: none
	Clients    Clients     `json:"clients"`
	Window     Duration    `json:"window"` // of the series over time; 0: no series
	Watch      string      `json:"watch"`  // the group whose share the series shows
	Changes    []Change    `json:"changes"`
	Algorithms []Algorithm `json:"algorithms"`
	Expect     []Expect    `json:"expect"`
	Live       *Live       `json:"live,omitempty"` // nil: the lab does not run it
}

// Group is a number of equal backends.
type Group struct {
	Name   string  `json:"name"`   // that changes and watch refer to
	Count  int     `json:"count"`  // default 1
	Speed  float64 `json:"speed"`  // work done per second and core; default 1
	Cores  int     `json:"cores"`  // requests served at a time; default 1
	Weight *uint16 `json:"weight"` // default 1
	Absent bool    `json:"absent"` // until a change adds it
}

// Arrivals is the process by which requests come, whatever the backends do.
type Arrivals struct {
	Process string   `json:"process"` // poisson (default), deterministic or bursty
	Burst   Duration `json:"burst"`   // bursty: mean length of a burst, in which all requests come
	Pause   Duration `json:"pause"`   // bursty: mean length of a pause
}

// Service is the distribution of the work of a request, in seconds at speed 1.
type Service struct {
	Distribution string   `json:"distribution"` // exponential (default), deterministic, lognormal, pareto or bimodal
	Mean         Duration `json:"mean"`         // default 10ms
	CV           float64  `json:"cv"`           // lognormal: standard deviation over mean; default 1
	Alpha        float64  `json:"alpha"`        // pareto: shape; default 1.5
	Span         float64  `json:"span"`         // pareto: longest over shortest, default 1000; bimodal: long over short, default 10
	Long         float64  `json:"long"`         // bimodal: part of the requests that are long; default 0.1
}

// Clients are the addresses from which requests come.
type Clients struct {
	Count int     `json:"count"` // default 1000
	Zipf  float64 `json:"zipf"`  // exponent of how unequal they are; 0: equal
}

// Change is something that happens to all backends of a group, or to the
// balancing, at a moment.
type Change struct {
	At        Duration `json:"at"`
	Action    string   `json:"action"`    // one of the constants below
	Backends  string   `json:"backends"`  // a group's name; not for algorithm and rate
	Factor    float64  `json:"factor"`    // slow: how many times slower than in the beginning; rate: how many times more requests than then
	Weight    uint16   `json:"weight"`    // weight
	Algorithm string   `json:"algorithm"` // algorithm: what every run switches to
}

// The actions of changes.
const (
	ChangeAdd       = "add"
	ChangeRemove    = "remove"
	ChangeSlow      = "slow"
	ChangeFreeze    = "freeze"    // it takes connections, and does nothing
	ChangeBlackhole = "blackhole" // no packet reaches it; to the simulator the same as freeze
	ChangeFail      = "fail"      // it refuses, and what it had is gone
	ChangeRecover   = "recover"
	ChangeWeight    = "weight"
	ChangeAlgorithm = "algorithm"
	ChangeRate      = "rate"
)

// Names that have a meaning to scenarios.
const (
	OracleJSQ       = "oracle-jsq" // joins the shortest queue, whoever sent what is in it
	OracleSED       = "oracle-sed" // knows speeds, too
	LeastConnection = "least-connection"
	LeastTime       = "least-time"
)

// Algorithm is one column of the result.
type Algorithm struct {
	Name      string    `json:"name"`      // of internal/algo, or oracle-jsq or oracle-sed
	Label     string    `json:"label"`     // default: the name
	SlowStart *Duration `json:"slowStart"` // default: the scenario's
	// CatchUp makes a slow start last, at full ramp, until the backend has as many
	// connections for its weight as one that is not starting.
	CatchUp bool   `json:"catchUp"`
	Signal  string `json:"signal"` // default: the scenario's
	Trial   *Trial `json:"trial"`
}

// Trial replaces constants of least-connection and least-time, to see what they
// do. A field that is missing has the value of internal/algo.
type Trial struct {
	Compare  *int     `json:"compare"`  // members compared, from a random start; 0: all
	Scatter  bool     `json:"scatter"`  // compare members at random places, not a run of neighbours
	HalfLife Duration `json:"halfLife"` // of an average that is not renewed; less than 0: for ever
	Average  int      `json:"average"`  // a sample moves the average by 1/Average
	Bits     int      `json:"bits"`     // significant bits of an average that count; 32: all
	Renew    *bool    `json:"renew"`    // the weight of the past in an average halves with each half-life without a sample
	Busy     string   `json:"busy"`     // of a backend with connections: decay, hold, age or open; see docs/SIMULATOR.md
}

// Expect is a bound on a metric of an algorithm's result.
type Expect struct {
	Algorithm string   `json:"algorithm"` // a label
	Metric    string   `json:"metric"`    // a JSON name of Result
	Of        string   `json:"of"`        // the label that the metric is divided by; empty: by nothing
	AtMost    *float64 `json:"atMost"`
	AtLeast   *float64 `json:"atLeast"`
	Load      float64  `json:"load"`  // only the case with this load; 0: every case
	Nodes     int      `json:"nodes"` // only the case with so many nodes; 0: every case
}

// Duration is a time.Duration that is spelled "10ms".
type Duration time.Duration

// UnmarshalJSON accepts what time.ParseDuration does.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("duration %s: want a string such as \"10ms\"", b)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("duration %q: want a number and a unit, such as 10ms", s)
	}
	*d = Duration(v)
	return nil
}

// MarshalJSON writes what UnmarshalJSON reads.
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(d).String())
}

// Seconds is the duration in seconds.
func (d Duration) Seconds() float64 { return time.Duration(d).Seconds() }

// Read reads a scenario, fills in the defaults and checks it. An error
// names the file and the field.
func Read(file string) (*Scenario, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("scenario: %w", err)
	}
	sc, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("scenario %s: %w", filepath.Base(file), err)
	}
	return sc, nil
}

// Parse reads a scenario from YAML, as Read does.
func Parse(data []byte) (*Scenario, error) {
	sc := &Scenario{}
	if err := yaml.UnmarshalStrict(data, sc); err != nil {
		return nil, err
	}
	sc.defaults()
	return sc, sc.check()
}

func (sc *Scenario) defaults() {
	setDefault(&sc.Discipline, "fcfs")
	setDefault(&sc.Signal, "last-byte")
	setDefault(&sc.Arrivals.Process, "poisson")
	setDefault(&sc.Clients.Count, 1000)
	s := &sc.Service
	setDefault(&s.Distribution, "exponential")
	setDefault(&s.Mean, Duration(10*time.Millisecond))
	setDefault(&s.CV, 1)
	setDefault(&s.Alpha, 1.5)
	setDefault(&s.Long, 0.1)
	setDefault(&s.Span, map[string]float64{"pareto": 1000, "bimodal": 10}[s.Distribution])
	if sc.Live != nil {
		sc.Live.defaults()
		if !sc.Live.Paced() { // requests come when they can
			sc.Requests, sc.Load = 1, []float64{1}
			sc.Algorithms = []Algorithm{{Name: "random"}}
		}
	}
	if len(sc.Nodes) == 0 {
		sc.Nodes = []int{1}
	}
	for i := range sc.Backends {
		g := &sc.Backends[i]
		setDefault(&g.Name, fmt.Sprintf("group%d", i+1))
		setDefault(&g.Count, 1)
		setDefault(&g.Speed, 1)
		setDefault(&g.Cores, 1)
		if g.Weight == nil {
			one := uint16(1)
			g.Weight = &one
		}
	}
	for i := range sc.Algorithms {
		a := &sc.Algorithms[i]
		setDefault(&a.Label, a.Name)
		setDefault(&a.Signal, sc.Signal)
		if a.SlowStart == nil {
			a.SlowStart = &sc.SlowStart
		}
	}
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Shrink makes the scenario factor times shorter, with everything that happens
// in it.
func (sc *Scenario) Shrink(factor float64) {
	short := func(d *Duration) { *d = Duration(float64(*d) / factor) }
	sc.Requests = max(1, int(float64(sc.Requests)/factor))
	short(&sc.Window)
	short(&sc.SlowStart)
	for i := range sc.Changes {
		short(&sc.Changes[i].At)
	}
	for i := range sc.Algorithms {
		if p := &sc.Algorithms[i].SlowStart; *p != &sc.SlowStart {
			d := **p
			short(&d)
			*p = &d
		}
	}
}
