// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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

	"github.com/lbproxy/lbproxy/internal/lb"
)

// get asks h for path.
func get(t *testing.T, h http.Handler, path string) (code int, body string) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
	return rec.Code, rec.Body.String()
}

func TestHealth(t *testing.T) {
	old, recent := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)
	well := [2]FamilyHealth{{true, old}, {true, recent}}
	for _, tc := range []struct {
		name                   string
		health                 Health
		healthz, livez, readyz int
	}{
		{"all is well", Health{well, true, true}, 200, 200, 200},
		{"an update of IPv4 is late", Health{[2]FamilyHealth{{false, old}, {true, recent}}, true, true}, 503, 503, 503},
		{"an update of IPv6 is late", Health{[2]FamilyHealth{{true, old}, {false, recent}}, true, true}, 503, 503, 503},
		{"starting", Health{[2]FamilyHealth{{Live: true}, {Live: true}}, false, true}, 200, 200, 503},
		{"stuck at start", Health{[2]FamilyHealth{{}, {}}, false, true}, 503, 503, 503},
		{"one family was updated", Health{[2]FamilyHealth{{true, old}, {Live: true}}, true, true}, 200, 200, 200},
		{"the node goes away", Health{well, true, false}, 503, 200, 200},
		{"it goes away, and an update is late", Health{[2]FamilyHealth{{false, old}, {true, recent}}, true, false}, 503, 503, 503},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var answers []string
			srv := httptest.NewServer(HealthHandler(func() Health { return tc.health }, func(path string, code int) {
				answers = append(answers, fmt.Sprint(path, " ", code))
			}))
			defer srv.Close()
			for path, want := range map[string]int{"/healthz": tc.healthz, "/livez": tc.livez, "/readyz": tc.readyz} {
				answers = nil
				resp, err := http.Get(srv.URL + path)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != want || resp.Header.Get("Content-Type") != "application/json" {
					t.Errorf("%s: %v, code %d, header %v; want %d, JSON", path, err, resp.StatusCode, resp.Header, want)
				}
				checkHealth(t, path, string(body), tc.health, want == 200)
				if want := []string{fmt.Sprint(path, " ", want)}; !slices.Equal(answers, want) {
					t.Errorf("told of answers %q, want %q", answers, want)
				}
			}
		})
	}
}

func checkHealth(t *testing.T, path, body string, h Health, ok bool) {
	t.Helper()
	var got map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%s: %v in %q", path, err, body)
	}
	if want := h.Families[0].Live && h.Families[1].Live; got["healthy"] != want {
		t.Errorf("%s: healthy = %v, want %v: it is the proxy's health, not the node's", path, got["healthy"], want)
	}
	if e, there := got["nodeEligible"]; there != (path == "/healthz") || there && e != h.NodeEligible {
		t.Errorf("%s: nodeEligible = %v", path, e)
	}
	last := time.Time{}
	want := map[string]any{}
	for i, f := range h.Families {
		if !f.LastUpdated.IsZero() {
			want[[]string{"IPv4", "IPv6"}[i]] = map[string]any{"lastUpdated": f.LastUpdated.Format(time.RFC3339Nano), "healthy": f.Live}
			last = f.LastUpdated // the second is the more recent one
		}
	}
	switch status, there := got["status"]; {
	case there != (len(want) > 0):
		t.Errorf("%s: status = %v, want %v", path, status, want)
	case there && !reflect.DeepEqual(status, want):
		t.Errorf("%s: status = %v, want %v", path, status, want)
	}
	updated := any(last.Format(time.RFC3339Nano))
	if ok {
		updated = got["currentTime"]
	}
	if got["lastUpdated"] != updated {
		t.Errorf("%s: lastUpdated = %v, want %v", path, got["lastUpdated"], updated)
	}
}

func TestEligibility(t *testing.T) {
	here, leaving, none := lb.Node{Known: true}, lb.Node{Known: true, Leaving: true}, lb.Node{}
	for _, tc := range []struct {
		name         string
		nodes        []lb.Node
		needs, alone bool // what is wanted with a source that must have a Node, and with another
	}{
		{"nothing was heard", nil, true, true},
		{"the Node is there", []lb.Node{here}, true, true},
		{"there is no Node from the start, as after a restart", []lb.Node{none}, false, true},
		{"there was never a Node", []lb.Node{none, none}, false, true},
		{"it comes late", []lb.Node{none, here}, true, true},
		{"it is deleted", []lb.Node{here, none}, false, true},
		{"it is deleted and created again", []lb.Node{here, none, here}, true, true},
		{"it is tainted or being deleted", []lb.Node{here, leaving}, false, false},
		{"it is leaving from the start", []lb.Node{leaving}, false, false},
		{"the taint is taken away", []lb.Node{leaving, here}, true, true},
		{"it leaves, and then it is gone", []lb.Node{here, leaving, none}, false, true},
	} {
		for needs, want := range map[bool]bool{true: tc.needs, false: tc.alone} {
			e := Eligibility{NeedsNode: needs}
			for _, n := range tc.nodes {
				e.SetNode(n)
			}
			if got := e.Eligible(); got != want {
				t.Errorf("%s (a Node is needed: %t): eligible %t, want %t", tc.name, needs, got, want)
			}
		}
	}
}

// TestHealthAnswersAnyMethod: some load balancers probe with HEAD.
func TestHealthAnswersAnyMethod(t *testing.T) {
	health := HealthHandler(func() Health {
		return Health{Families: [2]FamilyHealth{{Live: true}, {Live: true}}, Synced: true, NodeEligible: true}
	}, nil)
	numbers := MetricsHandler(pages())
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodOptions, "PROBE"} {
		for _, at := range []struct {
			h    http.Handler
			path string
		}{{health, "/healthz"}, {health, "/livez"}, {health, "/readyz"}, {numbers, "/healthz"}} {
			rec := httptest.NewRecorder()
			at.h.ServeHTTP(rec, httptest.NewRequest(method, at.path, nil))
			if rec.Code != http.StatusOK {
				t.Errorf("%s %s: code %d, want 200", method, at.path, rec.Code)
			}
		}
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
		failures := 0
		s := &Server{Name: "test", Addr: addr, Log: slog.New(slog.NewTextHandler(&log, nil)), Failed: func(error) { failures++ }}
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
		if failures != 1 {
			t.Errorf("told of %d failures, want 1", failures)
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
