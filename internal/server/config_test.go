// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// exampleConfig is that of an agent whose file has become useless.
func exampleConfig() Config {
	return Config{
		Fields:  map[string]any{"algorithm": "random", "profiling": true, "devices": []any{"eth0"}},
		Sources: map[string]string{"algorithm": "/c.yaml: algorithm"},
		File:    "/c.yaml", Hash: "0123456789abcdef", Applied: time.Unix(1000, 0).UTC(),
		Waiting:  []ConfigChange{{Field: "bpffs", From: "/a", To: "/b"}},
		Rejected: "algorithm: bad", Reloads: 3, Rejections: 2,
	}
}

func TestConfigMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(newCollector(Sources{Config: exampleConfig}))
	p := pages()
	p.Metrics = reg
	_, body := get(t, MetricsHandler(p), "/metrics")
	for _, want := range []string{
		`lbproxy_config_reloads_total{result="applied"} 3`, `lbproxy_config_reloads_total{result="rejected"} 2`,
		"lbproxy_config_last_success_timestamp_seconds 1000", "lbproxy_config_rejected 1", "lbproxy_config_restart_needed 1",
		`lbproxy_config_info{hash="0123456789abcdef"} 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("want %q in\n%s", want, body)
		}
	}
}

func TestAskConfig(t *testing.T) {
	dir := t.TempDir()
	if _, err := AskConfig(t.Context(), dir); !errors.Is(err, ErrNoAgent) {
		t.Errorf("without an agent: %v, want ErrNoAgent", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := listenControl(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&Control{Dir: dir, Verdicts: func() []Verdict { return nil }, Config: exampleConfig, Log: slog.New(slog.DiscardHandler)}).serve(ctx, ln)
	}()
	got, err := AskConfig(ctx, dir)
	want := exampleConfig()
	want.Reloads, want.Rejections = 0, 0 // which metrics tell
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	cancel()
	<-done
}

// TestProfilingFollows: it is switched while the server runs, and the paths with it.
func TestProfilingFollows(t *testing.T) {
	on := false
	p := pages()
	p.Profiling = func() bool { return on }
	h := MetricsHandler(p)
	for _, want := range []bool{false, true, false} {
		on = want
		code, _ := get(t, h, "/debug/pprof/")
		_, status := get(t, h, "/statusz")
		if (code == 200) != want || strings.Contains(status, "/debug/pprof") != want {
			t.Errorf("on %t: code %d, %s", want, code, status)
		}
	}
}

func TestDetailFollows(t *testing.T) {
	m := NewMetrics("v", sources(t))
	p := pages()
	p.Metrics = m.Gatherer()
	h := MetricsHandler(p)
	for _, tc := range []struct {
		detail           string
		max              int
		service, backend int
	}{{DetailService, 0, 3, 0}, {DetailBackend, 1, 1, 4}, {DetailNode, 0, 0, 0}, {DetailService, 2, 2, 0}} {
		m.SetDetail(tc.detail, tc.max)
		_, body := get(t, h, "/metrics")
		service, backend := strings.Count(body, "\nlbproxy_service_connections_active{"), strings.Count(body, "\nlbproxy_backend_connections_active{")
		if service != tc.service || backend == 0 != (tc.backend == 0) {
			t.Errorf("%s, %d: %d series of Services, %d of backends, want %d, %d", tc.detail, tc.max, service, backend, tc.service, tc.backend)
		}
	}
}
