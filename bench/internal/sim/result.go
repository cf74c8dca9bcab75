// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

// Result is what one algorithm did in one case. Times are in seconds and of
// requests that were answered; a share is a backend's requests over those that
// its weight has a claim to.
type Result struct {
	Algorithm string  `json:"algorithm"` // the label
	Load      float64 `json:"load"`
	Nodes     int     `json:"nodes"`

	Requests   int `json:"requests"`   // measured
	Failed     int `json:"failed"`     // refused, dropped, or nobody was there
	TimedOut   int `json:"timedOut"`   // the client gave up
	Unfinished int `json:"unfinished"` // stuck at a frozen backend at the end

	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`

	MaxShare       float64 `json:"maxShare"`       // the largest
	CV             float64 `json:"cv"`             // standard deviation of the shares over their mean
	Jain           float64 `json:"jain"`           // 1: all shares are equal; 1/n: one has all
	Utilisation    float64 `json:"utilisation"`    // of all cores
	MaxUtilisation float64 `json:"maxUtilisation"` // of the busiest backend's cores
	Herd           float64 `json:"herd"`           // most picks of one backend among as many as there are backends, on average
	WatchMax       float64 `json:"watchMax"`       // the watched group's largest share in a window with at least 20 fair picks
	Churn                  // of a hash

	WallSeconds float64 `json:"wallSeconds"`
	Series      []Point `json:"series,omitempty"`

	sojourn *histogram
	picks   []float64 // by backend
}

// Longer yields, for rising times, the part of the requests that took longer.
func (res *Result) Longer(yield func(seconds, part float64) bool) {
	above := float64(res.sojourn.n)
	for b, c := range res.sojourn.counts {
		above -= float64(c)
		if c > 0 && !yield(bucketStart(b+1), above/float64(res.sojourn.n)) {
			return
		}
	}
}

// simulateCase runs one case with one algorithm.
func simulateCase(sc *scenario.Scenario, alg *scenario.Algorithm, load float64, nodes int, engine Engine) (*Result, error) {
	begin := time.Now()
	r, err := newRun(sc, alg, load, nodes, engine)
	if err != nil {
		return nil, err
	}
	if err := r.simulate(); err != nil {
		return nil, err
	}
	res := r.result(load)
	res.WallSeconds = time.Since(begin).Seconds()
	return res, nil
}

func (r *run) result(load float64) *Result {
	m := &r.measure
	res := &Result{
		Algorithm: r.alg.Label, Load: load, Nodes: len(r.nodes),
		Requests: r.sc.Requests - r.warm, Failed: m.failed, TimedOut: m.timedOut,
		Mean: m.all.mean(), P50: m.all.quantile(0.5), P99: m.all.quantile(0.99), P999: m.all.quantile(0.999), Max: m.all.max,
		Herd: m.herd.value(), Churn: m.churn, Series: m.series, sojourn: m.all, picks: m.picks,
	}
	res.Unfinished = res.Requests - m.ended - m.failed - m.timedOut
	res.MaxShare, res.CV, res.Jain = m.shares()
	var busy, cores float64
	for b := range r.servers {
		c := float64(r.servers[b].Cores)
		busy, cores = busy+m.busy[b], cores+c
		if m.span > 0 {
			res.MaxUtilisation = max(res.MaxUtilisation, m.busy[b]/c/m.span)
		}
	}
	if m.span > 0 {
		res.Utilisation = busy / cores / m.span
	}
	for _, pt := range m.series {
		if pt.fair >= 20 {
			res.WatchMax = max(res.WatchMax, pt.Watch)
		}
	}
	return res
}

// shares returns the largest share, their coefficient of variation and Jain's
// index, over the backends that have a claim.
func (m *measure) shares() (most, cv, jain float64) {
	var shares []float64
	for b, fair := range m.fair {
		if fair > 0 {
			shares = append(shares, m.picks[b]/fair)
			most = max(most, m.picks[b]/fair)
		}
	}
	f := stats.FairnessOf(shares)
	return most, f.CV, f.Jain
}

// metric returns a number of a result by its JSON name.
func (res *Result) metric(name string) (float64, bool) {
	v := reflect.ValueOf(*res)
	for _, f := range reflect.VisibleFields(v.Type()) {
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag != name || name == "" {
			continue
		}
		switch f := v.FieldByIndex(f.Index); f.Kind() {
		case reflect.Float64:
			return f.Float(), true
		case reflect.Int:
			return float64(f.Int()), true
		}
	}
	return 0, false
}

// Report is the whole output of a scenario.
type Report struct {
	Scenario *scenario.Scenario `json:"scenario"`
	Engine   string             `json:"engine"`
	Results  []*Result          `json:"results"`
	Verdicts []Verdict          `json:"verdicts"`
}

// Verdict is whether an expectation holds in a case.
type Verdict struct {
	Text string  `json:"text"`
	Got  float64 `json:"got"`
	OK   bool    `json:"ok"`
}

// verdicts checks the expectations of a scenario against its results.
func verdicts(sc *scenario.Scenario, results []*Result) []Verdict {
	find := func(label string, of *Result) *Result {
		for _, r := range results {
			if r.Algorithm == label && r.Load == of.Load && r.Nodes == of.Nodes {
				return r
			}
		}
		return nil
	}
	var out []Verdict
	for _, e := range sc.Expect {
		for _, r := range results {
			if r.Algorithm != e.Algorithm || e.Load != 0 && r.Load != e.Load || e.Nodes != 0 && r.Nodes != e.Nodes {
				continue
			}
			got, _ := r.metric(e.Metric)
			what := fmt.Sprintf("%s of %s", e.Metric, e.Algorithm)
			if e.Of != "" {
				base, _ := find(e.Of, r).metric(e.Metric)
				got /= base
				what += " over that of " + e.Of
			}
			v := Verdict{Text: fmt.Sprintf("load %g, nodes %d: %s", r.Load, r.Nodes, what), Got: got, OK: true}
			if e.AtMost != nil {
				v.Text += fmt.Sprintf(" is at most %g", *e.AtMost)
				v.OK = got <= *e.AtMost
			}
			if e.AtLeast != nil {
				v.Text += fmt.Sprintf(" is at least %g", *e.AtLeast)
				v.OK = v.OK && got >= *e.AtLeast
			}
			out = append(out, v)
		}
	}
	return out
}

// MarshalJSON writes a number that JSON has no word for, as after a division by
// zero, as null.
func (v Verdict) MarshalJSON() ([]byte, error) {
	got := &v.Got
	if math.IsNaN(v.Got) || math.IsInf(v.Got, 0) {
		got = nil
	}
	return json.Marshal(struct {
		Text string   `json:"text"`
		Got  *float64 `json:"got"`
		OK   bool     `json:"ok"`
	}{v.Text, got, v.OK})
}
