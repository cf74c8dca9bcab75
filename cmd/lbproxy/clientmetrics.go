// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	clientmetrics "k8s.io/client-go/tools/metrics"

	"github.com/lbproxy/lbproxy/internal/server"
)

// requests is where client-go tells of what it asks the API server. It has one place
// for the process, as its log has, see clientLog.
var requests atomic.Pointer[server.Metrics]

// takeRequests makes client-go tell requests.
var takeRequests = sync.OnceFunc(func() {
	clientmetrics.Register(clientmetrics.RegisterOpts{RequestLatency: requestTimes{}, RequestResult: requestResults{}})
})

// countRequests makes m count what client-go asks the API server from now on.
func countRequests(m *server.Metrics) {
	requests.Store(m)
	takeRequests()
}

type requestTimes struct{}

// Observe notes how long an answer took.
func (requestTimes) Observe(_ context.Context, verb string, u url.URL, latency time.Duration) {
	requests.Load().ObserveRequest(verb, u.Host, latency)
}

type requestResults struct{}

// Increment counts an answer.
func (requestResults) Increment(_ context.Context, code, method, host string) {
	requests.Load().Requested(code, method, host)
}
