// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// series are what is scraped each minute for two hours: values by minute.
type series map[string]func(minute float64) float64

func always(v float64) func(float64) float64 { return func(float64) float64 { return v } }

// grows is a counter that grows by so much each minute.
func grows(by float64) func(float64) float64 {
	return func(minute float64) float64 { return by * minute }
}

// wellSeries are those of a node where all is well.
func wellSeries() series {
	s := series{
		`up{job="lbproxy"}`: always(1), `lbproxy_synced`: always(1), `lbproxy_sync_failures_total`: always(3), `lbproxy_services_failed`: always(0),
		`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"}`: always(1000),
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`:        always(1000.1),
		`lbproxy_map_entries{map="conns"}`:                                           always(80),
		`lbproxy_map_capacity{map="conns"}`:                                          always(100),
		`lbproxy_drops_total{reason="connection_table_full"}`:                        always(7),
		`lbproxy_drops_total{reason="source_range"}`:                                 grows(600), // clients that may not
		`lbproxy_drops_total{reason="no_backend_reject"}`:                            grows(6),
		`lbproxy_connections_corrected_total`:                                        always(0), `lbproxy_audit_differences_total`: always(1),
		`lbproxy_health_backends{state="ejected"}`: always(1), `lbproxy_health_backends{state="healthy"}`: always(9),
		`lbproxy_health_ignored_backends`:                                           always(0),
		`lbproxy_health_probe_duration_seconds_count{kind="exec",result="cannot"}`:  always(5),
		`lbproxy_health_probe_duration_seconds_count{kind="exec",result="healthy"}`: grows(10),
		`lbproxy_dataplane_fallback{because=""}`:                                    always(0), `lbproxy_config_rejected`: always(0),
		`lbproxy_connections_opened_total`: grows(6000), `lbproxy_connections_failed_total`: grows(60),
	}
	for le, part := range map[string]float64{"0.1": 0.5, "0.4": 1, "1.6": 1, "+Inf": 1} {
		s[fmt.Sprintf(`lbproxy_programming_latency_seconds_bucket{le=%q}`, le)] = grows(100 * part)
	}
	return s
}

// TestAlertsFire: each alert is silent where all is well, and no other one than it is loud
// when what it is about happens.
func TestAlertsFire(t *testing.T) {
	ill := map[string]series{
		"LbproxyDown":      {`up{job="lbproxy"}`: always(0)},
		"LbproxyNotSynced": {`lbproxy_synced`: always(0)},
		"LbproxySyncFailing": {
			`lbproxy_sync_failures_total`: grows(1), `lbproxy_services_failed`: always(1),
		},
		"LbproxyChangesWait":      {`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"}`: always(1100)},
		"LbproxyProgrammingSlow":  {`lbproxy_programming_latency_seconds_bucket{le="0.4"}`: grows(60)},
		"LbproxyTableNearlyFull":  {`lbproxy_map_entries{map="conns"}`: always(90)},
		"LbproxyDrops":            {`lbproxy_drops_total{reason="connection_table_full"}`: grows(1)},
		"LbproxyNoBackends":       {`lbproxy_drops_total{reason="no_backend_reject"}`: grows(600)},
		"LbproxyMiscounted":       {`lbproxy_connections_corrected_total`: grows(0.1)},
		"LbproxyTablesChanged":    {`lbproxy_audit_differences_total`: grows(0.1)},
		"LbproxyBackendsEjected":  {`lbproxy_health_backends{state="ejected"}`: always(5)},
		"LbproxyHealthIgnored":    {`lbproxy_health_ignored_backends`: always(2)},
		"LbproxyProbesImpossible": {`lbproxy_health_probe_duration_seconds_count{kind="exec",result="cannot"}`: grows(2)},
		"LbproxyFallback":         {`lbproxy_dataplane_fallback{because="no bpffs"}`: always(1)},
		"LbproxyConfigRejected":   {`lbproxy_config_rejected`: always(1)},
		"LbproxyObjectsNotServed": {`lbproxy_endpoints_problems{kind="Service",reason="InvalidAlgorithm"}`: always(1)},
		"LbproxyConnectionsFail":  {`lbproxy_connections_failed_total`: grows(900)},
	}
	rules := alerts(t)
	for _, about := range rules {
		if ill[about.Alert] == nil {
			t.Errorf("%s: nothing says when it is loud", about.Alert)
			continue
		}
		all := wellSeries()
		for name, values := range ill[about.Alert] {
			all[name] = values
		}
		for _, r := range rules {
			if got, want := loud(t, r.Expr, all), r.Alert == about.Alert; got != want {
				t.Errorf("when %s should be: %s is loud: %v", about.Alert, r.Alert, got)
			}
			if about.Alert == rules[0].Alert && loud(t, r.Expr, wellSeries()) {
				t.Errorf("%s is loud where all is well", r.Alert)
			}
		}
	}
}

// loud tells whether an expression has a result after an hour and a half.
func loud(t *testing.T, expr string, all series) bool {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: promParser})
	defer engine.Close()
	at := time.Unix(0, 0).Add(90 * time.Minute)
	q, err := engine.NewInstantQuery(t.Context(), &storage.MockQueryable{MockQuerier: scraped{t, all}}, nil, expr, at)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	res := q.Exec(t.Context())
	v, err := res.Vector()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return len(v) > 0
}

// scraped answers queries with series.
type scraped struct {
	t   *testing.T
	all series
}

func (s scraped) Select(_ context.Context, _ bool, _ *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	set := &seriesSet{at: -1}
next:
	for name, value := range s.all {
		ls, err := promParser.ParseMetric(name)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, m := range ms {
			if !m.Matches(ls.Get(m.Name)) {
				continue next
			}
		}
		var points []chunks.Sample
		for minute := range 120 {
			points = append(points, point{int64(minute) * 60_000, value(float64(minute))})
		}
		set.list = append(set.list, storage.NewListSeries(ls, points))
	}
	return set
}

func (scraped) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (scraped) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (scraped) Close() error { return nil }

type seriesSet struct {
	list []storage.Series
	at   int
}

func (s *seriesSet) Next() bool                        { s.at++; return s.at < len(s.list) }
func (s *seriesSet) At() storage.Series                { return s.list[s.at] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// point is a sample of a number.
type point struct {
	t int64
	v float64
}

func (p point) ST() int64                     { return 0 }
func (p point) T() int64                      { return p.t }
func (p point) F() float64                    { return p.v }
func (p point) H() *histogram.Histogram       { return nil }
func (p point) FH() *histogram.FloatHistogram { return nil }
func (p point) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (p point) Copy() chunks.Sample           { return p }
