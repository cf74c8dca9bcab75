// SPDX-License-Identifier: Apache-2.0

package server

import (
	"maps"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// labels pairs names with values. It is called tens of thousands of times in a
// scrape, hence the few allocations.
func labels(names []*string, values ...string) []*dto.LabelPair {
	pairs := make([]dto.LabelPair, len(names))
	out := make([]*dto.LabelPair, len(names))
	for i := range names {
		pairs[i].Name, pairs[i].Value = names[i], &values[i]
		out[i] = &pairs[i]
	}
	return out
}

// sample is one number. Samples of one object share their labels.
type sample struct {
	of     *described
	labels []*dto.LabelPair
	value  float64
}

// Desc returns what the number means.
func (s *sample) Desc() *prometheus.Desc { return s.of.Desc }

// Write fills in out.
func (s *sample) Write(out *dto.Metric) error {
	out.Label = s.labels
	if s.of.Kind == Counter {
		out.Counter = &dto.Counter{Value: &s.value}
	} else {
		out.Gauge = &dto.Gauge{Value: &s.value}
	}
	return nil
}

// collector reads its sources at each scrape.
type collector struct {
	src    Sources
	errors atomic.Uint64

	detail   atomic.Pointer[string] // DetailNode, DetailService or DetailBackend
	services limited                // those that have metrics of their own
}

func newCollector(src Sources) *collector {
	c := &collector{src: src}
	c.setDetail(src.Detail, src.MaxServices)
	return c
}

// Describe sends nothing: which samples there are depends on the sources, and the
// registry checks them all the same.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// out sends samples.
type out chan<- prometheus.Metric

func (o out) number(d *described, v float64, values ...string) {
	o <- &sample{d, labels(d.names, values...), v}
}

// Collect reads every source.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	o := out(ch)
	if c.src.Stats != nil {
		if st, err := c.src.Stats(); err != nil {
			c.errors.Add(1)
			o <- prometheus.NewInvalidMetric(descTotal.Desc, err)
		} else {
			c.connections(o, st)
			o.stats(st)
		}
	}
	o.number(&descErrors, float64(c.errors.Load()))
	if c.src.Writes != nil {
		o.number(&descWrites, float64(c.src.Writes()))
	}
	if c.src.Status != nil {
		o.status(c.src.Status())
	}
	if c.src.Changes != nil {
		o.changes(c.src.Changes())
	}
	if c.src.Problems != nil {
		for p, n := range c.src.Problems() {
			o.number(&descProblems, float64(n), p.Kind, p.Reason)
		}
	}
	if c.src.Health != nil {
		o.health(c.src.Health())
	}
	if c.src.Config != nil {
		o.config(c.src.Config())
	}
	if c.src.Approximated != nil {
		for algorithm, n := range c.src.Approximated() {
			o.number(&descApprox, float64(n), algorithm)
		}
	}
}

func (o out) stats(st dataplane.Stats) {
	for _, m := range st.Maps {
		o.number(&descEntries, float64(m.Used), m.Name)
		o.number(&descCapacity, float64(m.Max), m.Name)
	}
	o.number(&descCorrected, float64(st.Corrections))
	o.number(&descLost, float64(st.SymptomsLost))
	o.rules(st.Rules)
	for _, reason := range slices.Sorted(maps.Keys(st.Drops)) {
		o.number(&descDrops, float64(st.Drops[reason]), reason)
	}
}

// healthStates are those of backends, so that one that no backend is in is told, too.
var healthStates = []string{"unknown", "healthy", "suspect", "ejected"}

func (o out) health(st HealthStats) {
	for _, state := range healthStates {
		o.number(&descHealth, float64(st.Backends[state]), state)
	}
	for change, n := range st.Transitions {
		o.number(&descTransitions, float64(n), change[0], change[1])
	}
	for reason, n := range st.Ejections {
		o.number(&descEjections, float64(n), reason)
	}
	o.number(&descIgnored, float64(st.Ignored))
}

func (o out) status(st Status) {
	synced := 0.0
	if st.Synced {
		synced = 1
	}
	o.number(&descSynced, synced)
	if !st.LastSuccess.IsZero() {
		o.number(&descSuccess, seconds(st.LastSuccess))
	}
	o.number(&descServices, float64(st.Services))
	o.number(&descUnserved, float64(st.Failed))
	o.number(&descBackends, float64(st.Backends))
	o.number(&descSyncs, float64(st.Syncs))
	o.number(&descFailures, float64(st.SyncFailures))
	o.number(&descAudits, float64(st.Audits))
	o.number(&descDifferences, float64(st.AuditDifferences))
	o.number(&descUnaudited, float64(st.AuditFailures))
	for i, f := range families {
		o.family(f, st.Families[i])
	}
}
