// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func pages() Pages {
	return Pages{
		Metrics: prometheus.NewRegistry(),
		Mode:    "ebpf",
		Configz: func() any { return map[string]int{"a": 1} },
		Flags:   func() map[string]string { return map[string]string{"b": "2", "a": "1"} },
		Version: "v9",
		Started: time.Unix(1_800_000_000, 0),
		Log:     slog.New(slog.DiscardHandler),
	}
}

// ask sends a request and returns the answer.
func ask(h http.Handler, method, path, accept, body string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}

func TestMetricsServer(t *testing.T) {
	h := MetricsHandler(pages())
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

func TestProfilingIsOffByDefault(t *testing.T) {
	h := MetricsHandler(pages())
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile", "/debug/flags/v"} {
		if code := ask(h, http.MethodPut, path, "", "4").Code; code != 404 {
			t.Errorf("%s: code %d, want 404", path, code)
		}
	}
}

func TestProfiling(t *testing.T) {
	p := pages()
	p.Profiling = func() bool { return true }
	var set []string
	p.SetVerbosity = func(v string) error {
		if v == "x" {
			return errors.New("want a number")
		}
		set = append(set, v)
		return nil
	}
	h := MetricsHandler(p)
	for path, want := range map[string]string{
		"/debug/pprof/": "goroutine", "/debug/pprof/goroutine?debug=1": "goroutine profile: total", "/debug/pprof/symbol": "num_symbols",
	} {
		if code, body := get(t, h, path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: code %d, want 200 with %q:\n%s", path, code, want, body)
		}
	}
	for _, tc := range []struct {
		method, body string
		code         int
	}{
		{http.MethodGet, "", 405}, {http.MethodPut, "x", 400}, {http.MethodPut, strings.Repeat("1", 1000), 400}, {http.MethodPut, "4\n", 200},
	} {
		if rec := ask(h, tc.method, "/debug/flags/v", "", tc.body); rec.Code != tc.code {
			t.Errorf("%s %.10q: code %d %s, want %d", tc.method, tc.body, rec.Code, rec.Body, tc.code)
		}
	}
	if !slices.Equal(set, []string{"4"}) {
		t.Errorf("verbosity was set to %q, want 4", set)
	}
}

func TestSLIs(t *testing.T) {
	h := MetricsHandler(pages())
	const begun = "process_start_time_seconds 1.8e+09"
	check := func(what string, wants ...string) {
		t.Helper()
		_, body := get(t, h, "/metrics/slis")
		for _, want := range append(wants, begun) {
			if !strings.Contains(body, want) {
				t.Errorf("%s: want %q in\n%s", what, want, body)
			}
		}
		if len(wants) == 0 && strings.Contains(body, "kubernetes_") {
			t.Errorf("%s: want nothing of health checks in\n%s", what, body)
		}
	}
	check("nobody has asked")
	get(t, h, "/healthz")
	get(t, h, "/healthz")
	check("asked twice", `kubernetes_healthcheck{name="ping",type="healthz"} 1`,
		`kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 2`)
	if rec := ask(h, http.MethodDelete, "/metrics/slis", "", ""); rec.Code != 200 {
		t.Errorf("DELETE: code %d", rec.Code)
	}
	check("forgotten")
}

func TestFlagz(t *testing.T) {
	h := MetricsHandler(pages())
	if _, body := get(t, h, "/flagz"); !strings.HasPrefix(body, "\nlbproxy flagz\nWarning: ") || !strings.HasSuffix(body, "\n\na=1\nb=2\n") {
		t.Errorf("got %q", body)
	}
	rec := ask(h, http.MethodGet, "/flagz", "application/json;v=v1beta1;g=config.k8s.io;as=Flagz", "")
	const want = `{"apiVersion":"config.k8s.io/v1beta1","kind":"Flagz","metadata":{"name":"lbproxy"},"flags":{"a":"1","b":"2"}}`
	if got := strings.TrimSpace(rec.Body.String()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestStatusz(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pages()
		p.Started = time.Now()
		h := MetricsHandler(p)
		<-time.After(90*time.Minute + time.Second/2)
		_, body := get(t, h, "/statusz")
		for _, want := range []string{
			"\nlbproxy statusz\nWarning: ", "\nStarted: Sat Jan  1 00:00:00 UTC 2000\n", "\nUp: 1h30m0s\n", "\nGo version: " + runtime.Version() + "\n",
			"\nBinary version: v9\n", "\nPaths: /configz /flagz /healthz /metrics /metrics/slis /proxyMode /statusz\n",
		} {
			if !strings.Contains(body, want) {
				t.Errorf("want %q in\n%s", want, body)
			}
		}
		rec := ask(h, http.MethodGet, "/statusz", "text/html;q=0.9, application/json", "")
		var got struct {
			Kind, BinaryVersion string
			UptimeSeconds       int
			Paths               []string
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || got.Kind != "Statusz" || got.UptimeSeconds != 5400 ||
			got.BinaryVersion != "v9" || len(got.Paths) != 7 {
			t.Errorf("got %s (%v)", rec.Body, err)
		}
	})
}
