// SPDX-License-Identifier: Apache-2.0

//go:build root

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// regainLimit is for a change that comes while lbproxy waits between attempts to
// reach the API server: at most 8 s, see newBackoff in internal/endpoints.
const regainLimit = 20 * time.Second

// faults are the objects of the steps below.
type faults struct {
	*stage
	agent      *agent
	kubeconfig string
	steady     []target        // of a Service that nobody changes
	moving     *corev1.Service // whose endpoints change
	calls      *pulse          // of steady
}

// testFaults takes the API server and lbproxy away while traffic goes on: calls
// and open connections of a Service that does not change. None of them fails,
// and what changes in the meantime is not lost.
func testFaults(t *testing.T, s *stage, a *agent, kubeconfig string) {
	f := &faults{stage: s, agent: a, kubeconfig: kubeconfig}
	f.steady = atCluster(s.web(t, "steady", "backend1", "remote1"))
	f.moving = s.web(t, "moving", "backend1")
	for _, step := range []struct {
		name string
		run  func(*testing.T, *faults)
	}{
		{"server down", testServerDown},
		{"agent killed", testAgentKilled},
		{"watch lost", testWatchLost},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			f.calls = s.pulse(t, answers("backend1", "remote1"), s.open(t, "remote1", f.steady...), f.steady...)
			step.run(t, f)
			f.agent.running(t)
			f.calls.end(t)
		}) {
			return
		}
	}
	f.agent.stop(t)
	s.follow(t, time.Now(), expect{"lbproxy stopped: its rules serve", answers("backend1", "remote1"), f.steady})
}

func (f *faults) stopServer(t *testing.T) {
	t.Helper()
	if err := f.cluster.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
}

func (f *faults) startServer(t *testing.T) {
	t.Helper()
	if err := f.cluster.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// regain changes Services and EndpointSlices and waits for lbproxy, which lost the
// API server a moment ago, to follow. Each kind has a watch of its own.
func (f *faults) regain(t *testing.T, pod string) {
	t.Helper()
	began := time.Now()
	f.putPods(t, f.moving, pod)
	svc := f.put(t, newWeb("regain"))
	f.putPods(t, svc, pod)
	f.followWithin(t, began, regainLimit,
		expect{"endpoints change after the restart", answers(pod), atCluster(f.moving)},
		expect{"new Service after the restart", answers(pod), atCluster(svc)})
	began = time.Now()
	f.drop(t, svc)
	f.follow(t, began, expect{"the next change", silent, atCluster(svc)})
}

// The API server goes and comes back; lbproxy follows it as before.
func testServerDown(t *testing.T, f *faults) {
	f.stopServer(t)
	f.calls.beats(t, 500)
	f.follow(t, time.Now(), expect{"API server down", answers("backend1"), atCluster(f.moving)})
	f.startServer(t)
	f.regain(t, "backend2")
	testAPIServer(t, f.stage) // whose endpoint goes and comes with it
	f.regain(t, "backend1")
}

// lbproxy is killed, a Service goes, and lbproxy starts without an API server to
// ask: what is in the kernel goes on serving, also the Service that is gone,
// until lbproxy knows.
func testAgentKilled(t *testing.T, f *faults) {
	gone := f.web(t, "gone", "backend3")
	f.agent.kill(t)
	f.drop(t, gone)
	f.putPods(t, f.moving, "backend3")
	f.stopServer(t)
	f.calls.beats(t, 500)
	f.agent = f.startAgent(t, lbproxy.Name, f.kubeconfig)
	f.awaitHealth(t, http.StatusServiceUnavailable)
	f.calls.beats(t, 1000)
	f.follow(t, time.Now(),
		expect{"restarted without an API server", answers("backend3"), atCluster(gone)},
		expect{"and without news", answers("backend1"), atCluster(f.moving)})

	f.startServer(t)
	began := time.Now()
	f.followWithin(t, began, regainLimit,
		expect{"what was deleted meanwhile", silent, atCluster(gone)},
		expect{"what was changed meanwhile", answers("backend3"), atCluster(f.moving)})
	f.awaitHealth(t, http.StatusOK)
	f.regain(t, "backend1")
}

// The watches break while lbproxy cannot notice, and what they would have said
// is compacted away: lbproxy has to list again and to find what is gone.
func testWatchLost(t *testing.T, f *faults) {
	gone := f.web(t, "gone", "backend3")
	f.agent.signal(t, syscall.SIGSTOP)
	f.stopServer(t)
	f.startServer(t)
	f.drop(t, gone)
	fresh := f.put(t, newWeb("fresh"))
	f.putPods(t, fresh, "backend2")
	f.putPods(t, f.moving, "backend2")
	f.compact(t)
	f.stopServer(t)
	f.startServer(t)
	f.calls.beats(t, 500)
	f.follow(t, time.Now(), expect{"lbproxy stopped: the old state", answers("backend3"), atCluster(gone)})

	const begins = "Listing and watching"
	lists := f.agent.times(t, begins)
	f.agent.signal(t, syscall.SIGCONT)
	began := time.Now()
	f.followWithin(t, began, regainLimit,
		expect{"watch lost: deleted", silent, atCluster(gone)},
		expect{"watch lost: created", answers("backend2"), atCluster(fresh)},
		expect{"watch lost: changed", answers("backend2"), atCluster(f.moving)})
	// It is told so if it asks for what is compacted; if its connection broke in the middle
	// of an event it does not ask.
	if f.agent.times(t, begins) == lists {
		t.Error("the watches went on, want a new list")
	}
	f.regain(t, "backend1")
}

// compact makes etcd forget everything but the present state.
func (f *faults) compact(t *testing.T) {
	t.Helper()
	list, err := f.cluster.Client().CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(f.cluster.data, "client.sock"))
		},
	}}
	// The revision of etcd is the resource version of a list.
	body := fmt.Sprintf(`{"revision": %q, "physical": true}`, list.ResourceVersion)
	resp, err := client.Post("http://etcd/v3/kv/compaction", "application/json", bytes.NewBufferString(body))
	if err != nil {
		t.Fatalf("compact: %v", err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("compact: %s %s %v", resp.Status, text, err)
	}
}
