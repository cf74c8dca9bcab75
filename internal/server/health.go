// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Health is what the agent says of itself.
type Health struct {
	Live         bool      // updates are applied in time
	Synced       bool      // the kernel has had everything the cluster said at start
	NodeEligible bool      // the node is not about to go away
	LastUpdated  time.Time // when the kernel was last written; zero: not yet
}

// familyStatus and healthStatus have kube-proxy's field names.
// Source: Kubernetes 1.37 pkg/proxy/healthcheck/proxy_health.go.
type familyStatus struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

type healthStatus struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyStatus `json:"status,omitempty"`
}

// HealthHandler serves /healthz, which load balancers and readiness probes ask,
// and /livez, which says whether the process is stuck. The first is 503 also
// before everything was written once and while the node is not eligible.
// answered, which may be nil, is told the path and code of each answer.
func HealthHandler(health func() Health, answered func(path string, code int)) http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, answer func(Health) (healthy bool, eligible *bool)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			h := health()
			healthy, eligible := answer(h)
			code := http.StatusOK
			if !healthy {
				code = http.StatusServiceUnavailable
			}
			if answered != nil {
				answered(path, code)
			}
			writeJSON(w, code, statusOf(h, healthy, eligible, time.Now()))
		})
	}
	handle("/healthz", func(h Health) (bool, *bool) { return h.Live && h.Synced && h.NodeEligible, &h.NodeEligible })
	handle("/livez", func(h Health) (bool, *bool) { return h.Live, nil })
	return mux
}

// statusOf makes the answer. As in kube-proxy, a healthy proxy's lastUpdated is
// always recent, and its families appear with the first update.
func statusOf(h Health, healthy bool, eligible *bool, now time.Time) healthStatus {
	st := healthStatus{LastUpdated: h.LastUpdated, CurrentTime: now, NodeEligible: eligible, Healthy: healthy}
	if healthy {
		st.LastUpdated = now
	}
	if !h.LastUpdated.IsZero() {
		fs := familyStatus{h.LastUpdated, h.Live}
		st.Status = map[string]familyStatus{lb.IPv4.String(): fs, lb.IPv6.String(): fs}
	}
	return st
}

// writeJSON answers with v. What fails after the header cannot be told anyone.
func writeJSON(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n'))
}
