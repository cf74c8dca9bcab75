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
// Source: Kubernetes 1.37 pkg/proxy/metrics/metrics.go, and of the client of the API
// server staging/src/k8s.io/component-base/metrics/prometheus/restclient/metrics.go.
//
// Not here: what tells of nftables. Of iptables and conntrack, see rules.go.
type kubeProxyMetrics struct {
	syncs    *prometheus.HistogramVec
	full     *prometheus.HistogramVec // of those, syncs of everything
	partial  *prometheus.HistogramVec // and of what changed
	network  *prometheus.HistogramVec
	answers  map[string]*prometheus.CounterVec // by endpoint
	requests *prometheus.CounterVec            // to the API server
	latency  *prometheus.HistogramVec
}

var (
	descProxySyncs = describe(Metric{Name: "kubeproxy_sync_proxy_rules_duration_seconds", Kind: Histogram, Labels: []Label{labelIPFamily},
		Help: "Time a sync took that changed Services of a family, as kube-proxy has it."})
	descProxyFull = describe(Metric{Name: "kubeproxy_sync_full_proxy_rules_duration_seconds", Kind: Histogram, Labels: []Label{labelIPFamily},
		Help: "Time a sync of everything took, as kube-proxy has it."})
	descProxyPartial = describe(Metric{Name: "kubeproxy_sync_partial_proxy_rules_duration_seconds", Kind: Histogram, Labels: []Label{labelIPFamily},
		Help: "Time a sync of what had changed took, as kube-proxy has it."})
	descProxyNetwork = describe(Metric{Name: "kubeproxy_network_programming_duration_seconds", Kind: Histogram, Labels: []Label{labelIPFamily},
		Help: "Time from what made endpoints change until the change was in the kernel, as kube-proxy has it."})
	descProxyHealthz = describe(Metric{Name: "kubeproxy_proxy_healthz_total", Kind: Counter, Labels: []Label{labelCode},
		Help: "Answers of /healthz by HTTP code, as kube-proxy has it."})
	descProxyLivez = describe(Metric{Name: "kubeproxy_proxy_livez_total", Kind: Counter, Labels: []Label{labelCode},
		Help: "Answers of /livez by HTTP code, as kube-proxy has it."})
	descRequests = describe(Metric{Name: "rest_client_requests_total", Kind: Counter, Labels: []Label{labelCode, labelMethod, labelHost},
		Help: "Requests to the API server by HTTP code, method and host."})
	descRequestTime = describe(Metric{Name: "rest_client_request_duration_seconds", Kind: Histogram, Labels: []Label{labelVerb, labelHost},
		Help: "Time until the API server answered, by verb and host."})
)

func newKubeProxyMetrics() kubeProxyMetrics {
	syncs := prometheus.ExponentialBuckets(0.001, 2, 15)
	m := kubeProxyMetrics{
		syncs:   descProxySyncs.histograms(syncs),
		full:    descProxyFull.histograms(syncs),
		partial: descProxyPartial.histograms(syncs),
		network: descProxyNetwork.histograms(slices.Concat(
			prometheus.LinearBuckets(0.25, 0.25, 2),
			prometheus.LinearBuckets(1, 1, 59),
			prometheus.LinearBuckets(60, 5, 12),
			prometheus.LinearBuckets(120, 30, 7),
		)),
		answers:  map[string]*prometheus.CounterVec{"healthz": descProxyHealthz.counters(), "livez": descProxyLivez.counters()},
		requests: descRequests.counters(),
		latency:  descRequestTime.histograms([]float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60}),
	}
	for _, f := range families {
		for _, v := range []*prometheus.HistogramVec{m.syncs, m.full, m.partial, m.network} {
			v.WithLabelValues(f.String())
		}
	}
	return m
}

// all returns what a registry takes.
func (m kubeProxyMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{
		m.syncs, m.full, m.partial, m.network, m.answers["healthz"], m.answers["livez"], m.requests, m.latency,
	}
}

func (m kubeProxyMetrics) observeSync(d time.Duration, changed [2]bool, full bool) {
	kind := m.partial
	if full {
		kind = m.full
	}
	for i, f := range families {
		if changed[i] {
			m.syncs.WithLabelValues(f.String()).Observe(d.Seconds())
			kind.WithLabelValues(f.String()).Observe(d.Seconds())
		}
	}
}

// Requested records an answer of the API server.
func (m *Metrics) Requested(code, method, host string) {
	m.kubeProxy.requests.WithLabelValues(code, method, host).Inc()
}

// ObserveRequest records how long the API server took to begin an answer.
func (m *Metrics) ObserveRequest(verb, host string, d time.Duration) {
	m.kubeProxy.latency.WithLabelValues(verb, host).Observe(d.Seconds())
}

// What is read at a scrape. Of endpoints that are not local there is a gauge, whatever
// its name.
var (
	descRulesSynced = describe(Metric{Name: "kubeproxy_sync_proxy_rules_last_timestamp_seconds", Kind: Gauge, Labels: []Label{labelIPFamily},
		Help: "When changes of a family were last applied."})
	descRulesQueued = describe(Metric{Name: "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", Kind: Gauge, Labels: []Label{labelIPFamily},
		Help: "When a change of a family last came in."})
	descNoLocal = describe(Metric{Name: "kubeproxy_sync_proxy_rules_no_local_endpoints_total", Kind: Gauge, Labels: []Label{labelIPFamily, labelPolicy},
		Help: "Service ports whose traffic policy is Local and whose endpoints are all on other nodes."})
	descServiceEvents = describe(Metric{Name: "kubeproxy_sync_proxy_rules_service_changes_total", Kind: Counter,
		Help: "Events of Services."})
	descServicePending = describe(Metric{Name: "kubeproxy_sync_proxy_rules_service_changes_pending", Kind: Gauge,
		Help: "Changes of Services that no sync has taken up."})
	descSliceEvents = describe(Metric{Name: "kubeproxy_sync_proxy_rules_endpoint_changes_total", Kind: Counter,
		Help: "Events of EndpointSlices."})
	descSlicePending = describe(Metric{Name: "kubeproxy_sync_proxy_rules_endpoint_changes_pending", Kind: Gauge,
		Help: "Changes of EndpointSlices that no sync has taken up."})
)

// family sends what concerns one IP family.
func (o out) family(f lb.Family, st FamilyStatus) {
	if !st.LastSuccess.IsZero() {
		o.number(&descRulesSynced, seconds(st.LastSuccess), f.String())
	}
	if !st.LastQueued.IsZero() {
		o.number(&descRulesQueued, seconds(st.LastQueued), f.String())
	}
	o.number(&descNoLocal, float64(st.NoLocalInternal), f.String(), "internal")
	o.number(&descNoLocal, float64(st.NoLocalExternal), f.String(), "external")
}

// changes sends how much has come in.
func (o out) changes(c Changes) {
	o.number(&descServiceEvents, float64(c.Services.Total))
	o.number(&descServicePending, float64(c.Services.Pending))
	o.number(&descSliceEvents, float64(c.Endpoints.Total))
	o.number(&descSlicePending, float64(c.Endpoints.Pending))
}

// seconds returns t as Prometheus has timestamps.
func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
