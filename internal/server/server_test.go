// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// get asks h for path.
func get(t *testing.T, h http.Handler, path string) (code int, body string) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
	return rec.Code, rec.Body.String()
}

func TestHealth(t *testing.T) {
	applied := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		name            string
		health          Health
		healthz, livez  int
		eligible        bool
		familiesHealthy bool // whether they are shown at all: LastUpdated
	}{
		{"all is well", Health{true, true, true, applied}, 200, 200, true, true},
		{"an update is late", Health{false, true, true, applied}, 503, 503, true, false},
		{"starting", Health{true, false, true, time.Time{}}, 503, 200, true, false},
		{"the node goes away", Health{true, true, false, applied}, 503, 200, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var answers []string
			h := HealthHandler(func() Health { return tc.health }, func(path string, code int) {
				answers = append(answers, path+" "+http.StatusText(code))
			})
			for path, want := range map[string]int{"/healthz": tc.healthz, "/livez": tc.livez} {
				code, body := get(t, h, path)
				if code != want {
					t.Errorf("%s: code %d, want %d", path, code, want)
				}
				checkHealth(t, path, body, tc.health, want == 200)
			}
			if len(answers) != 2 {
				t.Errorf("answers %q, want two", answers)
			}
		})
	}
}

func checkHealth(t *testing.T, path, body string, h Health, healthy bool) {
	t.Helper()
	var got map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%s: %v in %q", path, err, body)
	}
	if got["healthy"] != healthy {
		t.Errorf("%s: healthy = %v, want %v", path, got["healthy"], healthy)
	}
	if e, there := got["nodeEligible"]; there != (path == "/healthz") || there && e != h.NodeEligible {
		t.Errorf("%s: nodeEligible = %v", path, e)
	}
	if healthy && got["lastUpdated"] != got["currentTime"] {
		t.Errorf("%s: lastUpdated = %v, want %v: it is recent in a healthy proxy", path, got["lastUpdated"], got["currentTime"])
	}
	if _, there := got["status"]; there == h.LastUpdated.IsZero() {
		t.Errorf("%s: status there: %v, updated: %v", path, there, h.LastUpdated)
	}
	if !h.LastUpdated.IsZero() {
		want := map[string]any{"lastUpdated": "2026-01-02T03:04:05Z", "healthy": h.Live}
		if s := got["status"].(map[string]any); !reflect.DeepEqual(s["IPv4"], want) || !reflect.DeepEqual(s["IPv6"], want) {
			t.Errorf("%s: status = %v, want %v for both families", path, s, want)
		}
	}
}

func TestMetricsServer(t *testing.T) {
	h := MetricsHandler(prometheus.NewRegistry(), "ebpf", func() any { return map[string]int{"a": 1} }, slog.New(slog.DiscardHandler))
	for path, want := range map[string]string{
		"/healthz": "ok", "/proxyMode": "ebpf", "/configz": "{\"a\":1}\n", "/metrics": "",
	} {
		if code, body := get(t, h, path); code != 200 || body != want {
			t.Errorf("%s: %d %q, want 200 %q", path, code, body, want)
		}
	}
	if code, _ := get(t, h, "/nothing"); code != 404 {
		t.Errorf("unknown path: code %d, want 404", code)
	}
}

// occupied returns a listener and its address.
func occupied(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln, netip.MustParseAddrPort(ln.Addr().String())
}

func TestBindIsRetriedWithOneLine(t *testing.T) {
	other, addr := occupied(t)
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := &Server{Name: "test", Addr: addr, Log: slog.New(slog.NewTextHandler(&log, nil))}
		bound := make(chan net.Listener)
		go func() {
			ln, err := s.listen(t.Context())
			if err != nil {
				t.Error(err)
			}
			bound <- ln
		}()
		<-time.After(3*bindRetry - time.Second)
		other.Close()
		begin := time.Now()
		ln := <-bound
		defer ln.Close()
		if took := time.Since(begin); took > bindRetry {
			t.Errorf("bound %v after the address was free, want at most %v", took, bindRetry)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines in the log, want 1:\n%s", n, log.String())
		}
	})
}

func TestBindHardFail(t *testing.T) {
	_, addr := occupied(t)
	s := &Server{Name: "test", Addr: addr, HardFail: true, Log: slog.New(slog.DiscardHandler)}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "test server: ") {
		t.Errorf("error %v, want one that names the server", err)
	}
}

func TestRunServesUntilTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	s := &Server{
		Name: "test", Addr: netip.MustParseAddrPort("127.0.0.1:0"), Handler: text("hello"),
		Log: slog.New(slog.NewJSONHandler(w, nil)),
	}
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	var line struct{ Address string }
	if err := json.NewDecoder(r).Decode(&line); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + line.Address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); string(body) != "hello" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLabelsAreSorted(t *testing.T) {
	for _, names := range [][]*string{backendLabels, serviceLabels} {
		var ns []string
		for _, n := range names {
			ns = append(ns, *n)
		}
		if !slices.IsSorted(ns) {
			t.Errorf("%q are not sorted", ns)
		}
	}
}
