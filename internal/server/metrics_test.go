// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

func name(t *testing.T, s string) lb.ServiceName {
	t.Helper()
	n, err := lb.ParseServiceName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// sources returns sources with a bit of everything.
func sources(t *testing.T) Sources {
	web, dns, idle := name(t, "shop/web:http/TCP/IPv4"), name(t, "kube-system/dns/UDP/IPv6"), name(t, "shop/idle/TCP/IPv4")
	a, b := netip.MustParseAddrPort("10.244.0.1:80"), netip.MustParseAddrPort("10.244.0.2:80")
	return Sources{
		Stats: func() (dataplane.Stats, error) {
			return dataplane.Stats{
				Backends: []dataplane.BackendStats{
					{Service: web, Backend: b, Live: 6, Counted: true, Opened: 10, Closed: 4, Failed: 1},
					{Service: web, Backend: a, Counted: true, Opened: 7, Closed: 7, Latency: 1500 * time.Microsecond},
					{Service: web, Backend: b, Live: 2, Counted: true, Opened: 3, Closed: 1, Leaving: true},
					{Service: dns, Backend: netip.MustParseAddrPort("[fd00::1]:53"), Counted: true, Opened: 1, Closed: 2},
				},
				Services:    map[lb.ServiceName]dataplane.Counts{web: {Opened: 25, Closed: 17, Failed: 3}, dns: {Opened: 1, Closed: 2}, idle: {}},
				Total:       dataplane.Counts{Opened: 30, Closed: 22, Failed: 4},
				Corrections: 6, SymptomsLost: 8,
				Maps:  []dataplane.MapUsage{{Name: "conns", Used: 5, Max: 100}},
				Rules: []dataplane.RuleStats{{Family: lb.IPv4, Tables: []dataplane.TableStats{{Name: "nat", Rules: 40, Written: 3}}, Failures: 1, Ended: 12}},
				Drops: map[string]uint64{"no-backend": 3, "malformed": 0},
			}, nil
		},
		Writes: func() uint64 { return 42 },
		Status: func() Status {
			return Status{Synced: true, LastSuccess: time.Unix(1000, 500e6), Services: 2, Failed: 1, Backends: 3, Syncs: 9, SyncFailures: 4,
				Audits: 5, AuditDifferences: 2, AuditFailures: 1,
				Families: [2]FamilyStatus{
					{LastSuccess: time.Unix(1000, 500e6), LastQueued: time.Unix(1000, 250e6), NoLocalInternal: 3, NoLocalExternal: 4},
					{LastQueued: time.Unix(900, 0)},
				}}
		},
		Problems: func() map[Problem]int {
			return map[Problem]int{{"Service", "Conflict"}: 2, {"Pod", "InvalidWeight"}: 1}
		},
		Changes: func() Changes { return Changes{Services: Tally{12, 1}, Endpoints: Tally{345, 6}} },
		Health: func() HealthStats {
			return HealthStats{
				Backends: map[string]int{"healthy": 5, "ejected": 2}, Ignored: 1,
				Transitions: map[[2]string]uint64{{"healthy", "ejected"}: 4, {"unknown", "healthy"}: 7},
				Ejections:   map[string]uint64{"probe": 3, "refused": 1},
			}
		},
		Dataplane: "iptables", Detail: DetailBackend,
		Approximated: func() map[string]int { return map[string]int{"least-time": 3} },
	}
}

const wantMetrics = `
# HELP kubeproxy_conntrack_reconciler_deleted_entries_total Entries of connection tracking that were deleted because their endpoint or Service is gone.
# TYPE kubeproxy_conntrack_reconciler_deleted_entries_total counter
kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 12
# HELP kubeproxy_sync_proxy_rules_iptables_last Rules written by the last change.
# TYPE kubeproxy_sync_proxy_rules_iptables_last gauge
kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="nat"} 3
# HELP kubeproxy_sync_proxy_rules_iptables_restore_failures_total Changes of rules that failed.
# TYPE kubeproxy_sync_proxy_rules_iptables_restore_failures_total counter
kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv4"} 1
# HELP kubeproxy_sync_proxy_rules_iptables_total Rules in lbproxy's own chains.
# TYPE kubeproxy_sync_proxy_rules_iptables_total gauge
kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"} 40
# HELP kubeproxy_sync_proxy_rules_endpoint_changes_pending Changes of EndpointSlices that no sync has taken up.
# TYPE kubeproxy_sync_proxy_rules_endpoint_changes_pending gauge
kubeproxy_sync_proxy_rules_endpoint_changes_pending 6
# HELP kubeproxy_sync_proxy_rules_endpoint_changes_total Events of EndpointSlices.
# TYPE kubeproxy_sync_proxy_rules_endpoint_changes_total counter
kubeproxy_sync_proxy_rules_endpoint_changes_total 345
# HELP kubeproxy_sync_proxy_rules_service_changes_pending Changes of Services that no sync has taken up.
# TYPE kubeproxy_sync_proxy_rules_service_changes_pending gauge
kubeproxy_sync_proxy_rules_service_changes_pending 1
# HELP kubeproxy_sync_proxy_rules_service_changes_total Events of Services.
# TYPE kubeproxy_sync_proxy_rules_service_changes_total counter
kubeproxy_sync_proxy_rules_service_changes_total 12
# HELP kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds When a change of a family last came in.
# TYPE kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds gauge
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"} 1000.25
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"} 900
# HELP kubeproxy_sync_proxy_rules_last_timestamp_seconds When changes of a family were last applied.
# TYPE kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge
kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1000.5
# HELP kubeproxy_sync_proxy_rules_no_local_endpoints_total Service ports whose traffic policy is Local and whose endpoints are all on other nodes.
# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge
kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 4
kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 3
kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"} 0
kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="internal"} 0
# HELP lbproxy_audit_differences_total Differences that were found and repaired. Anything but 0 is a bug, or somebody else wrote to the tables.
# TYPE lbproxy_audit_differences_total counter
lbproxy_audit_differences_total 2
# HELP lbproxy_audit_failures_total Parts of an audit that could not be done.
# TYPE lbproxy_audit_failures_total counter
lbproxy_audit_failures_total 1
# HELP lbproxy_audit_runs_total Times that everything in the kernel was compared with what should be there.
# TYPE lbproxy_audit_runs_total counter
lbproxy_audit_runs_total 5
# HELP lbproxy_backend_connections_active Connections and UDP flows of a backend that have not ended.
# TYPE lbproxy_backend_connections_active gauge
lbproxy_backend_connections_active{backend="10.244.0.1:80",family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 0
lbproxy_backend_connections_active{backend="10.244.0.2:80",family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 8
lbproxy_backend_connections_active{backend="[fd00::1]:53",family="IPv6",namespace="kube-system",port="",protocol="UDP",service="dns"} 0
# HELP lbproxy_backend_connections_closed_total Those of a backend that have ended.
# TYPE lbproxy_backend_connections_closed_total counter
lbproxy_backend_connections_closed_total{backend="10.244.0.1:80",family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 7
lbproxy_backend_connections_closed_total{backend="10.244.0.2:80",family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 5
lbproxy_backend_connections_closed_total{backend="[fd00::1]:53",family="IPv6",namespace="kube-system",port="",protocol="UDP",service="dns"} 2
# HELP lbproxy_backend_connections_failed_total Those of a backend that ended before they were established.
# TYPE lbproxy_backend_connections_failed_total counter
lbproxy_backend_connections_failed_total{backend="10.244.0.1:80",family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 0
lbproxy_backend_connections_failed_total{backend="10.244.0.2:80",family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 1
lbproxy_backend_connections_failed_total{backend="[fd00::1]:53",family="IPv6",namespace="kube-system",port="",protocol="UDP",service="dns"} 0
# HELP lbproxy_backend_connections_opened_total Connections and UDP flows given to a backend since it was added.
# TYPE lbproxy_backend_connections_opened_total counter
lbproxy_backend_connections_opened_total{backend="10.244.0.1:80",family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 7
lbproxy_backend_connections_opened_total{backend="10.244.0.2:80",family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 13
lbproxy_backend_connections_opened_total{backend="[fd00::1]:53",family="IPv6",namespace="kube-system",port="",protocol="UDP",service="dns"} 1
# HELP lbproxy_backend_latency_seconds Moving average of the time that least-time compares, of backends for which it is measured.
# TYPE lbproxy_backend_latency_seconds gauge
lbproxy_backend_latency_seconds{backend="10.244.0.1:80",family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 0.0015
# HELP lbproxy_backends Backends of all Service ports.
# TYPE lbproxy_backends gauge
lbproxy_backends 3
# HELP lbproxy_connections_active Connections and UDP flows that have not ended.
# TYPE lbproxy_connections_active gauge
lbproxy_connections_active 8
# HELP lbproxy_connections_closed_total Connections and UDP flows that have ended since the agent started.
# TYPE lbproxy_connections_closed_total counter
lbproxy_connections_closed_total 22
# HELP lbproxy_connections_corrected_total Connections by which a recount found the counts of backends wrong. Anything but 0 is a bug.
# TYPE lbproxy_connections_corrected_total counter
lbproxy_connections_corrected_total 6
# HELP lbproxy_connections_failed_total Connections that ended before they were established since the agent started.
# TYPE lbproxy_connections_failed_total counter
lbproxy_connections_failed_total 4
# HELP lbproxy_connections_opened_total Connections and UDP flows given to backends since the agent started.
# TYPE lbproxy_connections_opened_total counter
lbproxy_connections_opened_total 30
# HELP lbproxy_dataplane_writes_total Changes made to kernel tables.
# TYPE lbproxy_dataplane_writes_total counter
lbproxy_dataplane_writes_total 42
# HELP lbproxy_drops_total Packets and calls that were not served.
# TYPE lbproxy_drops_total counter
lbproxy_drops_total{reason="malformed"} 0
lbproxy_drops_total{reason="no-backend"} 3
# HELP lbproxy_endpoints_problems What objects ask for that is not served, or not as asked.
# TYPE lbproxy_endpoints_problems gauge
lbproxy_endpoints_problems{kind="Pod",reason="InvalidWeight"} 1
lbproxy_endpoints_problems{kind="Service",reason="Conflict"} 2
# HELP lbproxy_health_backends Backends that are watched, by what is thought of them.
# TYPE lbproxy_health_backends gauge
lbproxy_health_backends{state="ejected"} 2
lbproxy_health_backends{state="healthy"} 5
lbproxy_health_backends{state="suspect"} 0
lbproxy_health_backends{state="unknown"} 0
# HELP lbproxy_health_ejections_total Backends that were put out, by what was found against them.
# TYPE lbproxy_health_ejections_total counter
lbproxy_health_ejections_total{reason="probe"} 3
lbproxy_health_ejections_total{reason="refused"} 1
# HELP lbproxy_health_ignored_backends Backends that are ejected and take new connections all the same, because too few others are left.
# TYPE lbproxy_health_ignored_backends gauge
lbproxy_health_ignored_backends 1
# HELP lbproxy_health_symptoms_lost_total Connections that did not fare well, which the agent was too slow to hear of.
# TYPE lbproxy_health_symptoms_lost_total counter
lbproxy_health_symptoms_lost_total 8
# HELP lbproxy_health_transitions_total Changes of what is thought of a backend.
# TYPE lbproxy_health_transitions_total counter
lbproxy_health_transitions_total{from="healthy",to="ejected"} 4
lbproxy_health_transitions_total{from="unknown",to="healthy"} 7
# HELP lbproxy_map_capacity Entries that a kernel table has room for.
# TYPE lbproxy_map_capacity gauge
lbproxy_map_capacity{map="conns"} 100
# HELP lbproxy_map_entries Entries of a kernel table in use.
# TYPE lbproxy_map_entries gauge
lbproxy_map_entries{map="conns"} 5
# HELP lbproxy_scrape_errors_total Scrapes for which the dataplane's counters could not be read.
# TYPE lbproxy_scrape_errors_total counter
lbproxy_scrape_errors_total 0
# HELP lbproxy_service_connections_active Connections and UDP flows of a Service port that have not ended.
# TYPE lbproxy_service_connections_active gauge
lbproxy_service_connections_active{family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 8
lbproxy_service_connections_active{family="IPv4",namespace="shop",port="",protocol="TCP",service="idle"} 0
lbproxy_service_connections_active{family="IPv6",namespace="kube-system",port="",protocol="UDP",service="dns"} 0
# HELP lbproxy_service_connections_closed_total Those of a Service port that have ended since the agent started.
# TYPE lbproxy_service_connections_closed_total counter
lbproxy_service_connections_closed_total{family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 17
lbproxy_service_connections_closed_total{family="IPv4",namespace="shop",port="",protocol="TCP",service="idle"} 0
lbproxy_service_connections_closed_total{family="IPv6",namespace="kube-system",port="",protocol="UDP",service="dns"} 2
# HELP lbproxy_service_connections_failed_total Those of a Service port that ended before they were established since the agent started.
# TYPE lbproxy_service_connections_failed_total counter
lbproxy_service_connections_failed_total{family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 3
lbproxy_service_connections_failed_total{family="IPv4",namespace="shop",port="",protocol="TCP",service="idle"} 0
lbproxy_service_connections_failed_total{family="IPv6",namespace="kube-system",port="",protocol="UDP",service="dns"} 0
# HELP lbproxy_service_connections_opened_total Connections and UDP flows given to backends of a Service port since the agent started.
# TYPE lbproxy_service_connections_opened_total counter
lbproxy_service_connections_opened_total{family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 25
lbproxy_service_connections_opened_total{family="IPv4",namespace="shop",port="",protocol="TCP",service="idle"} 0
lbproxy_service_connections_opened_total{family="IPv6",namespace="kube-system",port="",protocol="UDP",service="dns"} 1
# HELP lbproxy_services Service ports, per IP family, in the kernel.
# TYPE lbproxy_services gauge
lbproxy_services 2
# HELP lbproxy_services_approximated Service ports, per IP family, for which the dataplane only approximates what their algorithm says.
# TYPE lbproxy_services_approximated gauge
lbproxy_services_approximated{algorithm="least-time"} 3
# HELP lbproxy_services_failed Service ports, per IP family, that are not what they should be.
# TYPE lbproxy_services_failed gauge
lbproxy_services_failed 1
# HELP lbproxy_services_unlisted Service ports without metrics of their own, because there are more than metrics-max-services.
# TYPE lbproxy_services_unlisted gauge
lbproxy_services_unlisted 0
# HELP lbproxy_sync_failures_total Those of them that failed for one Service or all.
# TYPE lbproxy_sync_failures_total counter
lbproxy_sync_failures_total 4
# HELP lbproxy_sync_last_success_timestamp_seconds When changes were last applied without an error of the dataplane.
# TYPE lbproxy_sync_last_success_timestamp_seconds gauge
lbproxy_sync_last_success_timestamp_seconds 1000.5
# HELP lbproxy_synced Whether everything the cluster said at start was written once.
# TYPE lbproxy_synced gauge
lbproxy_synced 1
# HELP lbproxy_syncs_total Sets of changes handed to the dataplane.
# TYPE lbproxy_syncs_total counter
lbproxy_syncs_total 9
`

func TestCollector(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newCollector(sources(t)))
	if err := testutil.GatherAndCompare(reg, strings.NewReader(wantMetrics)); err != nil {
		t.Error(err)
	}
}

// measured returns metrics of which each has been measured.
func measured(t *testing.T) *Metrics {
	src := sources(t)
	src.Config = exampleConfig
	m := NewMetrics("v1", src)
	m.ObserveSync(time.Millisecond, [2]bool{true, false}, false)
	m.ObserveSync(time.Second, [2]bool{true, true}, true)
	m.Requested("200", "GET", "api:6443")
	m.ObserveRequest("GET", "api:6443", 20*time.Millisecond)
	m.ObserveNetworkProgramming(lb.IPv6, 1500*time.Millisecond)
	m.ObserveProgramming(0.01)
	m.ObserveProbe(lb.ProbeHTTP, 3*time.Millisecond, ProbeUnhealthy)
	m.Answered("/healthz", 503)
	m.Answered("/livez", 200)
	m.Answered("/readyz", 200)
	return m
}

func TestMetricsLint(t *testing.T) {
	m := measured(t)
	problems, err := testutil.GatherAndLint(m.Gatherer())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "kubeproxy_") { // not our names
			continue
		}
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	_, body := get(t, MetricsHandler(Pages{Metrics: m.Gatherer(), Log: slog.New(slog.DiscardHandler)}), "/metrics")
	for _, want := range []string{
		`lbproxy_build_info{goversion="go`, `lbproxy_dataplane_info{dataplane="iptables"} 1`, `lbproxy_health_answers_total{code="503",endpoint="healthz"} 1`,
		`lbproxy_health_probe_duration_seconds_bucket{kind="http",result="unhealthy",le="0.002"} 0`,
		`lbproxy_health_probe_duration_seconds_bucket{kind="http",result="unhealthy",le="0.004"} 1`,
		"lbproxy_sync_duration_seconds_count 2", "lbproxy_programming_latency_seconds_sum 0.01", "go_goroutines ",
		`kubeproxy_proxy_healthz_total{code="503"} 1`, `kubeproxy_proxy_livez_total{code="200"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.001"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="16.384"} 2`,
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.512"} 0`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family="IPv6",le="1.024"} 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="16.384"} 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv6"} 0`,
		`rest_client_requests_total{code="200",host="api:6443",method="GET"} 1`,
		`rest_client_request_duration_seconds_bucket{host="api:6443",verb="GET",le="0.005"} 0`,
		`rest_client_request_duration_seconds_bucket{host="api:6443",verb="GET",le="0.025"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv6",le="1"} 0`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv6",le="2"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv6",le="115"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv6",le="300"} 1`,
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 0`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
}

func TestScrapeErrorIsCounted(t *testing.T) {
	src := sources(t)
	src.Stats = func() (dataplane.Stats, error) { return dataplane.Stats{}, errors.New("map is gone") }
	var log strings.Builder
	h := MetricsHandler(Pages{Metrics: NewMetrics("v1", src).Gatherer(), Log: slog.New(slog.NewTextHandler(&log, nil))})
	for n := 1; n <= 2; n++ {
		code, body := get(t, h, "/metrics")
		if want := fmt.Sprintf("lbproxy_scrape_errors_total %d", n); code != 200 || !strings.Contains(body, want) {
			t.Errorf("code %d; the answer lacks %q", code, want)
		}
		if !strings.Contains(body, "lbproxy_services 2") {
			t.Error("the other numbers are missing")
		}
	}
	if !strings.Contains(log.String(), "map is gone") {
		t.Errorf("log %q lacks the cause", log.String())
	}
}

// connectionMetrics are the names of metrics of connections.
func connectionMetrics() (names []string) {
	for _, m := range Catalogue() {
		if strings.HasPrefix(m.Name, descTotal.Name[:len("lbproxy_connections_")]) && m.Name != descCorrected.Name || m.Detail != "" {
			names = append(names, m.Name)
		}
	}
	return names
}

// TestDetail: how many numbers there are does not follow the size of the cluster, unless
// that is asked for.
func TestDetail(t *testing.T) {
	series := func(detail string, max, services int) (n int, unlisted float64) {
		st := dataplane.Stats{Services: map[lb.ServiceName]dataplane.Counts{}}
		for i := range services {
			svc := name(t, fmt.Sprintf("shop/s%d/TCP/IPv4", i))
			st.Services[svc] = dataplane.Counts{}
			for j := range 3 {
				addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j)}), 80)
				st.Backends = append(st.Backends, dataplane.BackendStats{Service: svc, Backend: addr, Counted: true})
			}
		}
		reg := prometheus.NewRegistry()
		reg.MustRegister(newCollector(Sources{Detail: detail, MaxServices: max, Stats: func() (dataplane.Stats, error) { return st, nil }}))
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			n += len(f.Metric)
			if f.GetName() == "lbproxy_services_unlisted" {
				unlisted = f.Metric[0].GetGauge().GetValue()
			}
		}
		return n, unlisted
	}
	alone, _ := series(DetailNode, 5, 10)
	if n, _ := series(DetailNode, 5, 20); n != alone {
		t.Errorf("%s: %d series of 20 Services, %d of 10", DetailNode, n, alone)
	}
	for _, tc := range []struct {
		detail        string
		max, services int
		want          int
		unlisted      float64
	}{
		{DetailService, 5, 20, 5 * 4, 15},
		{DetailService, 0, 20, 20 * 4, 0},
		{DetailService, 30, 20, 20 * 4, 0},
		{DetailBackend, 5, 20, 5*4 + 20*3*4, 15},
	} {
		n, unlisted := series(tc.detail, tc.max, tc.services)
		if n -= alone + 1; n != tc.want || unlisted != tc.unlisted { // 1: what is not listed
			t.Errorf("%s, at most %d: %d series of Services and backends, %v unlisted, want %d and %v", tc.detail, tc.max, n, unlisted, tc.want, tc.unlisted)
		}
	}
}

// TestListedStay: a Service port with metrics of its own keeps them while others come, and
// leaves its place when it goes.
func TestListedStay(t *testing.T) {
	l := limited{max: 2}
	var names []lb.ServiceName
	for _, s := range []string{"a", "b", "c", "d"} {
		names = append(names, name(t, "shop/"+s+"/TCP/IPv4"))
	}
	for _, step := range []struct{ there, want string }{
		{"bc", "bc"}, {"abcd", "bc"}, {"acd", "ac"}, {"abcd", "ac"}, {"", ""},
	} {
		var there []lb.ServiceName
		for i, n := range names {
			if strings.Contains(step.there, string("abcd"[i])) {
				there = append(there, n)
			}
		}
		told, untold := l.of(there)
		got := ""
		for _, n := range names {
			if told[n] {
				got += n.Name
			}
		}
		if got != step.want || untold != len(step.there)-len(step.want) {
			t.Errorf("%q are there: %q are told, %d are not, want %q", step.there, got, untold, step.want)
		}
	}
}

// TestUncounted: of a dataplane that knows only what is open, nothing else is told.
func TestUncounted(t *testing.T) {
	web := name(t, "shop/web:http/TCP/IPv4")
	reg := prometheus.NewRegistry()
	reg.MustRegister(newCollector(Sources{Stats: func() (dataplane.Stats, error) {
		return dataplane.Stats{Backends: []dataplane.BackendStats{
			{Service: web, Backend: netip.MustParseAddrPort("10.244.0.1:80"), Live: 3, Latency: time.Millisecond},
			{Service: web, Backend: netip.MustParseAddrPort("10.244.0.2:80"), Live: 4, Leaving: true},
		}}, nil
	}}))
	const want = `
# HELP lbproxy_connections_active Connections and UDP flows that have not ended.
# TYPE lbproxy_connections_active gauge
lbproxy_connections_active 7
# HELP lbproxy_service_connections_active Connections and UDP flows of a Service port that have not ended.
# TYPE lbproxy_service_connections_active gauge
lbproxy_service_connections_active{family="IPv4",namespace="shop",port="http",protocol="TCP",service="web"} 7
# HELP lbproxy_services_unlisted Service ports without metrics of their own, because there are more than metrics-max-services.
# TYPE lbproxy_services_unlisted gauge
lbproxy_services_unlisted 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), connectionMetrics()...); err != nil {
		t.Error(err)
	}
}

// BenchmarkScrape is a scrape of 10,000 Services with 5 backends each.
func BenchmarkScrape(b *testing.B) {
	var st dataplane.Stats
	for i := range 10000 {
		svc := lb.ServiceName{Object: lb.Object{Namespace: "bench", Name: fmt.Sprint("service-", i)}, Port: "http", Proto: lb.TCP, Family: lb.IPv4}
		for j := range 5 {
			addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(j)}), 8080)
			st.Backends = append(st.Backends, dataplane.BackendStats{Service: svc, Backend: addr, Counted: true, Opened: uint64(i)})
		}
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(newCollector(Sources{Stats: func() (dataplane.Stats, error) { return st, nil }}))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := reg.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
