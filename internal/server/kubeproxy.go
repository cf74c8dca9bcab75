// SPDX-License-Identifier: Apache-2.0

package server

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Metrics under kube-proxy's names, so that dashboards go on. There are only those
// that mean the same here; names, labels and buckets are kube-proxy's.
// Source: Kubernetes 1.37 pkg/proxy/metrics/metrics.go.
//
// Not here: ..._service_changes_..., ..._endpoint_changes_... (kube-proxy counts every
// event of an object; here events that make no difference are gone before they are
// counted), and what tells of iptables, nftables and conntrack.
type kubeProxyMetrics struct {
	syncs   *prometheus.HistogramVec
	network *prometheus.HistogramVec
	answers map[string]*prometheus.CounterVec // by endpoint
}

const kubeProxyFamily = "ip_family"

func newKubeProxyMetrics() kubeProxyMetrics {
	byFamily := []string{kubeProxyFamily}
	answers := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"code"})
	}
	m := kubeProxyMetrics{
		syncs: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kubeproxy_sync_proxy_rules_duration_seconds",
			Help:    "Time a sync took that changed Services of a family, as kube-proxy has it.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, byFamily),
		network: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kubeproxy_network_programming_duration_seconds",
			Help: "Time from what made endpoints change until the change was in the kernel, as kube-proxy has it.",
			Buckets: slices.Concat(
				prometheus.LinearBuckets(0.25, 0.25, 2),
				prometheus.LinearBuckets(1, 1, 59),
				prometheus.LinearBuckets(60, 5, 12),
				prometheus.LinearBuckets(120, 30, 7),
			),
		}, byFamily),
		answers: map[string]*prometheus.CounterVec{
			"healthz": answers("kubeproxy_proxy_healthz_total", "Answers of /healthz by HTTP code, as kube-proxy has it."),
			"livez":   answers("kubeproxy_proxy_livez_total", "Answers of /livez by HTTP code, as kube-proxy has it."),
		},
	}
	for _, f := range families {
		m.syncs.WithLabelValues(f.String())
		m.network.WithLabelValues(f.String())
	}
	return m
}

// all returns what a registry takes.
func (m kubeProxyMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.syncs, m.network, m.answers["healthz"], m.answers["livez"]}
}

func (m kubeProxyMetrics) observeSync(d time.Duration, changed [2]bool) {
	for i, f := range families {
		if changed[i] {
			m.syncs.WithLabelValues(f.String()).Observe(d.Seconds())
		}
	}
}

// Descriptions of what is read at a scrape. The last is a gauge, whatever its name.
var (
	descRulesSynced = kubeProxyDesc("sync_proxy_rules_last_timestamp_seconds", "When changes of a family were last applied.")
	descRulesQueued = kubeProxyDesc("sync_proxy_rules_last_queued_timestamp_seconds", "When a change of a family last came in.")
	descNoLocal     = kubeProxyDesc("sync_proxy_rules_no_local_endpoints_total",
		"Service ports whose traffic policy is Local and whose endpoints are all on other nodes.", labelNames("traffic_policy")...)
)

func kubeProxyDesc(name, help string, more ...*string) described {
	d := described{names: append(labelNames(kubeProxyFamily), more...)}
	var names []string
	for _, n := range d.names {
		names = append(names, *n)
	}
	d.Desc = prometheus.NewDesc("kubeproxy_"+name, help, names, nil)
	return d
}

// family sends what concerns one IP family.
func (o out) family(f lb.Family, st FamilyStatus) {
	if !st.LastSuccess.IsZero() {
		o.gauge(descRulesSynced, seconds(st.LastSuccess), f.String())
	}
	if !st.LastQueued.IsZero() {
		o.gauge(descRulesQueued, seconds(st.LastQueued), f.String())
	}
	o.gauge(descNoLocal, float64(st.NoLocalInternal), f.String(), "internal")
	o.gauge(descNoLocal, float64(st.NoLocalExternal), f.String(), "external")
}

// seconds returns t as Prometheus has timestamps.
func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
