// SPDX-License-Identifier: Apache-2.0

package server

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Kind is the type of a metric, as Prometheus spells it.
type Kind string

// The kinds.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// How much the metrics of connections tell apart. Each also has what those before it have.
const (
	DetailNode    = "node"    // sums of the node
	DetailService = "service" // Service ports, of which a limited number is told
	DetailBackend = "backend" // and backends of all of them
)

// Label is a name that numbers of a metric are told apart by.
type Label struct {
	Name   string
	Values string // what they can be, or what there is one for
}

// Metric is what is known of a metric before it is measured.
type Metric struct {
	Name   string
	Kind   Kind
	Help   string
	Labels []Label
	Only   string // the dataplane that has it; empty: any
	Detail string // from which detail on it is told; empty: always
	Page   string // where it is if not at /metrics
}

// KubeProxy tells whether the name is that of kube-proxy, or of all components of
// Kubernetes, and means the same there.
func (m Metric) KubeProxy() bool {
	return slices.ContainsFunc([]string{"kubeproxy_", "rest_client_", "kubernetes_"}, func(p string) bool {
		return strings.HasPrefix(m.Name, p)
	})
}

// Unit is what a number of the metric counts, by the conventions of Prometheus for names.
func (m Metric) Unit() string {
	switch name := strings.TrimSuffix(m.Name, "_total"); {
	case strings.HasSuffix(name, "_timestamp_seconds") || strings.HasSuffix(name, "_time_seconds"):
		return "seconds since 1970"
	case strings.HasSuffix(name, "_seconds"):
		return "seconds"
	case strings.HasSuffix(name, "_info") || slices.Contains([]string{"lbproxy_synced", "lbproxy_dataplane_fallback", "lbproxy_config_rejected", "kubernetes_healthcheck"}, name):
		return "0 or 1"
	}
	return "number"
}

// catalogue has every metric that describe was told of: it is complete when the
// package's variables are there.
var catalogue []Metric

// Catalogue returns every metric that the agent has, sorted by name, but for go_ and
// process_, which are client_golang's.
func Catalogue() []Metric {
	return slices.SortedFunc(slices.Values(catalogue), func(a, b Metric) int { return strings.Compare(a.Name, b.Name) })
}

// described is a metric and what makes samples of it.
type described struct {
	*prometheus.Desc
	Metric
	names []*string // of the labels: they are shared by all samples
}

// describe notes m, and returns what is needed to measure it.
func describe(m Metric) described {
	catalogue = append(catalogue, m)
	d := described{Metric: m, names: make([]*string, len(m.Labels))}
	for i := range m.Labels {
		d.names[i] = &m.Labels[i].Name
	}
	d.Desc = prometheus.NewDesc(m.Name, m.Help, d.labelNames(), nil)
	return d
}

func (d described) labelNames() []string {
	names := make([]string, len(d.names))
	for i, n := range d.names {
		names[i] = *n
	}
	return names
}

// counters returns counters that are kept here.
func (d described) counters() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: d.Name, Help: d.Help}, d.labelNames())
}

// gauges returns gauges that are kept here.
func (d described) gauges() *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: d.Name, Help: d.Help}, d.labelNames())
}

// histograms returns histograms that are kept here.
func (d described) histograms(buckets []float64) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: d.Name, Help: d.Help, Buckets: buckets}, d.labelNames())
	if len(d.names) == 0 {
		v.WithLabelValues()
	}
	return v
}
