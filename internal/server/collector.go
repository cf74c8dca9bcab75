// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Label names in their order in the output: sorted.
var (
	backendLabels = labelNames("backend", "family", "namespace", "port", "protocol", "service")
	serviceLabels = backendLabels[1:]
)

// Descriptions of what is read at a scrape.
var (
	descOpened = describe("service_connections_opened_total", "Connections and UDP flows given to a backend.", backendLabels...)
	descClosed = describe("service_connections_closed_total", "Those of them that have ended.", backendLabels...)
	descFailed = describe("service_connections_failed_total", "Those of them that ended before they were established.", backendLabels...)
	descActive = describe("service_connections_active", "Connections and UDP flows of a Service port that have not ended.", serviceLabels...)
	descTime   = describe("service_latency_seconds", "Moving average of the time that least-time compares, of backends for which it is measured.", backendLabels...)
	descTotal  = describe("connections_active", "Connections and UDP flows that have not ended.")

	descEntries   = describe("map_entries", "Entries of a kernel table in use.", labelNames("map")...)
	descCapacity  = describe("map_capacity", "Entries that a kernel table has room for.", labelNames("map")...)
	descDrops     = describe("drops_total", "Packets and calls that were not served.", labelNames("reason")...)
	descCorrected = describe("connections_corrected_total", "Connections by which a recount found the counts of backends wrong. Anything but 0 is a bug.")
	descWrites    = describe("dataplane_writes_total", "Changes made to kernel tables.")

	descSynced      = describe("synced", "Whether everything the cluster said at start was written once.")
	descSuccess     = describe("sync_last_success_timestamp_seconds", "When changes were last applied without an error of the dataplane.")
	descServices    = describe("services", "Service ports, per IP family, in the kernel.")
	descUnserved    = describe("services_failed", "Service ports, per IP family, that are not what they should be.")
	descBackends    = describe("backends", "Backends of all Service ports.")
	descSyncs       = describe("syncs_total", "Sets of changes handed to the dataplane.")
	descFailures    = describe("sync_failures_total", "Those of them that failed for one Service or all.")
	descProblems    = describe("endpoints_problems", "What objects ask for that is not served, or not as asked.", labelNames("kind", "reason")...)
	descApprox      = describe("services_approximated", "Service ports, per IP family, for which the dataplane only approximates what their algorithm says.", labelNames("algorithm")...)
	descAudits      = describe("audit_runs_total", "Times that everything in the kernel was compared with what should be there.")
	descDifferences = describe("audit_differences_total", "Differences that were found and repaired. Anything but 0 is a bug, or somebody else wrote to the tables.")
	descUnaudited   = describe("audit_failures_total", "Parts of an audit that could not be done.")
	descHealth      = describe("health_backends", "Backends that are watched, by what is thought of them.", labelNames("state")...)
	descTransitions = describe("health_transitions_total", "Changes of what is thought of a backend.", labelNames("from", "to")...)
	descEjections   = describe("health_ejections_total", "Backends that were put out, by what was found against them.", labelNames("reason")...)
	descIgnored     = describe("health_ignored_backends", "Backends that are ejected and take new connections all the same, because too few others are left.")
	descLost        = describe("health_symptoms_lost_total", "Connections that did not fare well, which the agent was too slow to hear of.")
	descErrors      = describe("scrape_errors_total", "Scrapes for which the dataplane's counters could not be read.")
)

// labelNames returns pointers to names: they are shared by all samples.
func labelNames(names ...string) []*string {
	ps := make([]*string, len(names))
	for i := range names {
		ps[i] = &names[i]
	}
	return ps
}

// described is a description and what makes samples of it.
type described struct {
	*prometheus.Desc
	names []*string
}

func describe(name, help string, labels ...*string) described {
	names := make([]string, len(labels))
	for i, l := range labels {
		names[i] = *l
	}
	return described{prometheus.NewDesc("lbproxy_"+name, help, names, nil), labels}
}

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
	described
	counter bool
	labels  []*dto.LabelPair
	value   float64
}

// Desc returns what the number means.
func (s *sample) Desc() *prometheus.Desc { return s.described.Desc }

// Write fills in out.
func (s *sample) Write(out *dto.Metric) error {
	out.Label = s.labels
	if s.counter {
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
}

func newCollector(src Sources) *collector { return &collector{src: src} }

// Describe sends nothing: which samples there are depends on the sources, and the
// registry checks them all the same.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// out sends samples.
type out chan<- prometheus.Metric

func (o out) counter(d described, v uint64, values ...string) {
	o <- &sample{d, true, labels(d.names, values...), float64(v)}
}

func (o out) gauge(d described, v float64, values ...string) {
	o <- &sample{d, false, labels(d.names, values...), v}
}

// Collect reads every source.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	o := out(ch)
	if c.src.Stats != nil {
		if st, err := c.src.Stats(); err != nil {
			c.errors.Add(1)
			o <- prometheus.NewInvalidMetric(descTotal.Desc, err)
		} else {
			o.stats(st)
		}
	}
	o.counter(descErrors, c.errors.Load())
	if c.src.Writes != nil {
		o.counter(descWrites, c.src.Writes())
	}
	if c.src.Status != nil {
		o.status(c.src.Status())
	}
	if c.src.Changes != nil {
		o.changes(c.src.Changes())
	}
	if c.src.Problems != nil {
		for p, n := range c.src.Problems() {
			o.gauge(descProblems, float64(n), p.Kind, p.Reason)
		}
	}
	if c.src.Health != nil {
		o.health(c.src.Health())
	}
	if c.src.Approximated != nil {
		for algorithm, n := range c.src.Approximated() {
			o.gauge(descApprox, float64(n), algorithm)
		}
	}
}

func (o out) stats(st dataplane.Stats) {
	o.backends(st.Backends)
	for _, m := range st.Maps {
		o.gauge(descEntries, float64(m.Used), m.Name)
		o.gauge(descCapacity, float64(m.Max), m.Name)
	}
	o.counter(descCorrected, st.Corrections)
	o.counter(descLost, st.SymptomsLost)
	o.rules(st.Rules)
	for _, reason := range slices.Sorted(maps.Keys(st.Drops)) {
		o.counter(descDrops, st.Drops[reason], reason)
	}
}

// healthStates are those of backends, so that one that no backend is in is told, too.
var healthStates = []string{"unknown", "healthy", "suspect", "ejected"}

func (o out) health(st HealthStats) {
	for _, state := range healthStates {
		o.gauge(descHealth, float64(st.Backends[state]), state)
	}
	for change, n := range st.Transitions {
		o.counter(descTransitions, n, change[0], change[1])
	}
	for reason, n := range st.Ejections {
		o.counter(descEjections, n, reason)
	}
	o.gauge(descIgnored, float64(st.Ignored))
}

// backends sends the counters of every backend that has some. A backend that left and
// came back while it had connections is there twice, and shown once. Opened, closed and
// failed are not summed per Service: a sum would fall when a backend is removed,
// which reads as a restart. sum(rate(...)) does it right.
func (o out) backends(bs []dataplane.BackendStats) {
	slices.SortFunc(bs, func(a, b dataplane.BackendStats) int {
		return cmp.Or(a.Service.Compare(b.Service), a.Backend.Compare(b.Backend))
	})
	var total, active uint64
	for i := 0; i < len(bs); i++ {
		b := bs[i]
		for ; i+1 < len(bs) && bs[i+1].Service == b.Service && bs[i+1].Backend == b.Backend; i++ {
			b.Live += bs[i+1].Live
			b.Opened += bs[i+1].Opened
			b.Closed += bs[i+1].Closed
			b.Failed += bs[i+1].Failed
			b.Latency = cmp.Or(b.Latency, bs[i+1].Latency)
		}
		active += b.Live
		total += b.Live
		values := append([]string{b.Backend.String()}, serviceValues(b.Service)...)
		shared := labels(backendLabels, values...)
		if b.Counted {
			o <- &sample{descOpened, true, shared, float64(b.Opened)}
			o <- &sample{descClosed, true, shared, float64(b.Closed)}
			o <- &sample{descFailed, true, shared, float64(b.Failed)}
		}
		if b.Latency > 0 {
			o <- &sample{descTime, false, shared, b.Latency.Seconds()}
		}
		if i+1 == len(bs) || bs[i+1].Service != b.Service {
			o <- &sample{descActive, false, shared[1:], float64(active)}
			active = 0
		}
	}
	o.gauge(descTotal, float64(total))
}

// serviceValues returns the values of serviceLabels.
func serviceValues(n lb.ServiceName) []string {
	return []string{n.Family.String(), n.Namespace, n.Port, n.Proto.String(), n.Name}
}

func (o out) status(st Status) {
	synced := 0.0
	if st.Synced {
		synced = 1
	}
	o.gauge(descSynced, synced)
	if !st.LastSuccess.IsZero() {
		o.gauge(descSuccess, seconds(st.LastSuccess))
	}
	o.gauge(descServices, float64(st.Services))
	o.gauge(descUnserved, float64(st.Failed))
	o.gauge(descBackends, float64(st.Backends))
	o.counter(descSyncs, st.Syncs)
	o.counter(descFailures, st.SyncFailures)
	o.counter(descAudits, st.Audits)
	o.counter(descDifferences, st.AuditDifferences)
	o.counter(descUnaudited, st.AuditFailures)
	for i, f := range families {
		o.family(f, st.Families[i])
	}
}
