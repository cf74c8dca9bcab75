// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// families are the IP families in the order of arrays.
var families = [2]lb.Family{lb.IPv4, lb.IPv6}

// Health is what the agent says of itself.
type Health struct {
	Families     [2]FamilyHealth // IPv4, IPv6
	Synced       bool            // the kernel has had everything the cluster said at start
	NodeEligible bool            // the node is not about to go away
}

// FamilyHealth is the health of one IP family.
type FamilyHealth struct {
	Live        bool      // updates are applied in time
	LastUpdated time.Time // when the kernel was last written; zero: not yet
}

// Live tells whether updates of both families are applied in time.
func (h Health) Live() bool { return h.Families[0].Live && h.Families[1].Live }

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
	Healthy      bool                    `json:"healthy"` // of the proxy: the node does not count
	Status       map[string]familyStatus `json:"status,omitempty"`
}

// HealthHandler serves three questions. Two are kube-proxy's: /livez is 503 when
// updates are not applied in time, /healthz, which load balancers ask, also while the
// node is not eligible. /readyz is /livez, and 503 before everything was written once.
// Any method is answered, as kube-proxy does. answered, which may be nil, is told the
// path and code of each answer.
func HealthHandler(health func() Health, answered func(path string, code int)) http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, judge func(Health) (ok bool, eligible *bool)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			h := health()
			ok, eligible := judge(h)
			code := http.StatusOK
			if !ok {
				code = http.StatusServiceUnavailable
			}
			if answered != nil {
				answered(path, code)
			}
			writeJSON(w, code, statusOf(h, ok, eligible, time.Now()))
		})
	}
	handle("/healthz", func(h Health) (bool, *bool) { return h.Live() && h.NodeEligible, &h.NodeEligible })
	handle("/livez", func(h Health) (bool, *bool) { return h.Live(), nil })
	handle("/readyz", func(h Health) (bool, *bool) { return h.Live() && h.Synced, nil })
	return mux
}

// statusOf makes the answer. As in kube-proxy, lastUpdated is now where the answer is
// yes, and a family appears with its first update.
func statusOf(h Health, ok bool, eligible *bool, now time.Time) healthStatus {
	st := healthStatus{CurrentTime: now, NodeEligible: eligible, Healthy: h.Live(), Status: map[string]familyStatus{}}
	for i, f := range h.Families {
		if f.LastUpdated.IsZero() {
			continue
		}
		st.Status[families[i].String()] = familyStatus{f.LastUpdated, f.Live}
		if f.LastUpdated.After(st.LastUpdated) {
			st.LastUpdated = f.LastUpdated
		}
	}
	if ok {
		st.LastUpdated = now
	}
	return st
}

// Eligibility tells from the own Node whether load balancers should send to it. The
// zero value has heard nothing and says yes. Its methods may be called from any
// goroutine.
type Eligibility struct {
	NeedsNode bool // without a Node object the answer is no; set before anything is called

	mu             sync.Mutex
	absent, leaves bool
}

// SetNode takes over what the Node object says, once that is known: a Node that is
// not Known does not exist.
func (e *Eligibility) SetNode(n lb.Node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.absent, e.leaves = !n.Known, n.Leaving
}

// Eligible tells whether the node is there to stay.
func (e *Eligibility) Eligible() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.leaves && (!e.absent || !e.NeedsNode)
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
