// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// vip is a Service's address in these tests.
type vip string

// The addresses of the Services.
const (
	webVIP  vip = "10.96.1.1:80"
	bigVIP  vip = "10.96.1.2:80"
	nextVIP vip = "10.96.1.3:80"
	edgeVIP vip = "172.32.0.9:80"
)

func (v vip) addr() netip.AddrPort { return netip.MustParseAddrPort(string(v)) }
func (v vip) ip() string           { return v.addr().Addr().String() }

// clients reach a Service in every way there is: a pod's sockets, a pod's packets,
// the node itself, and a machine outside.
var clients = []string{"client1", "client2", lab.Node, lab.Outside}

// manifest is a Service, round-robin, with one slice that names pods.
func (r *rig) manifest(name string, at vip, pods ...string) string {
	return r.service(name, at) + "---\n" + r.slice(name, pods...)
}

func (r *rig) service(name string, at vip) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %s, namespace: shop, annotations: {lbproxy.io/algorithm: round-robin}}
spec:
  clusterIP: %s
  ports:
    - {name: http, port: %d, targetPort: %d}
`, name, at.ip(), at.addr().Port(), backendPort)
}

func (r *rig) slice(name string, pods ...string) string {
	var endpoints []string
	for _, pod := range pods {
		node := lab.Node
		if strings.HasPrefix(pod, "remote") {
			node = lab.Node2
		}
		endpoints = append(endpoints, fmt.Sprintf("{addresses: [%s], nodeName: %s}", r.lab.Host(pod).Addr4, node))
	}
	return fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-1, namespace: shop, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: http, port: %[2]d}]
endpoints: [%[3]s]
`, name, backendPort, strings.Join(endpoints, ", "))
}

// put replaces a manifest in one step, as most editors do.
func (r *rig) put(file, text string) {
	r.t.Helper()
	tmp := filepath.Join(r.lab.Dir(), "edited")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(r.dir, file)); err != nil {
		r.t.Fatal(err)
	}
}

// overwrite truncates a manifest and writes it again, as the other editors do.
func (r *rig) overwrite(file, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, file), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// remove deletes a manifest.
func (r *rig) remove(file string) {
	r.t.Helper()
	if err := os.Remove(filepath.Join(r.dir, file)); err != nil {
		r.t.Fatal(err)
	}
}

// dial makes one connection.
func (r *rig) dial(from string, at vip, timeout time.Duration) lab.Result {
	return r.lab.Host(from).Dial(r.t.Context(), lab.Request{Proto: lab.TCP, To: at.addr(), Timeout: timeout})
}

// follows waits until exactly these pods answer every client, then makes sure.
func (r *rig) follows(at vip, pods ...string) {
	r.t.Helper()
	for _, from := range clients {
		eventually(r.t, fmt.Sprintf("%s gets answers of %v at %s", from, pods, at), func() bool {
			return slices.Contains(pods, r.dial(from, at, time.Second).Backend)
		})
	}
	r.serves(at, pods...)
}

// serves checks that every client is answered, by all of these pods and nobody
// else.
func (r *rig) serves(at vip, pods ...string) {
	r.t.Helper()
	for _, from := range clients {
		got := map[string]int{}
		for range 4 * len(pods) {
			res := r.dial(from, at, 2*time.Second)
			if res.Kind != lab.OK {
				r.t.Fatalf("%s dials %s: %s %s", from, at, res.Kind, res.Err)
			}
			got[res.Backend]++
		}
		if answered := slices.Sorted(maps.Keys(got)); !slices.Equal(answered, slices.Sorted(slices.Values(pods))) {
			r.t.Fatalf("%s dials %s: answers %v, want all of %v and no others", from, at, got, pods)
		}
	}
}

// refuses waits until every client is refused, then checks that it is at once.
func (r *rig) refuses(at vip) {
	r.t.Helper()
	for _, from := range clients {
		eventually(r.t, fmt.Sprintf("%s is refused at %s", from, at), func() bool {
			return r.dial(from, at, time.Second).Kind == lab.Refused
		})
		res := r.dial(from, at, 5*time.Second)
		for i := 0; i < 3 && res.Kind == lab.Refused && res.Took > atOnce; i++ { // is it the machine that is slow?
			res = r.dial(from, at, 5*time.Second)
		}
		if res.Kind != lab.Refused || res.Took > atOnce {
			r.t.Errorf("%s dials %s: %s after %s, want refused at once", from, at, res.Kind, res.Took)
		}
	}
}

// gone checks that nobody answers any client.
func (r *rig) gone(at vip) {
	r.t.Helper()
	for _, from := range clients {
		if res := r.dial(from, at, silence); res.Kind == lab.OK || res.Kind == lab.Refused {
			r.t.Errorf("%s dials %s: %s %s, want no answer", from, at, res.Kind, res.Backend)
		}
	}
}

// traffic is connections that are made all the time, by every client.
type traffic struct {
	t      *testing.T
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	made   map[string]int // by client
	failed []string
}

// traffic starts dialling until stop.
func (r *rig) traffic(at vip) *traffic {
	r.t.Helper()
	return r.trafficEvery(at, 5*time.Millisecond) // the rest of the machine has work to do
}

// trafficEvery is traffic with a pause between connections of a client.
func (r *rig) trafficEvery(at vip, every time.Duration) *traffic {
	ctx, cancel := context.WithCancel(r.t.Context())
	tr := &traffic{t: r.t, cancel: cancel, made: map[string]int{}}
	for _, from := range clients {
		tr.wg.Go(func() {
			pause := time.NewTicker(every)
			defer pause.Stop()
			for ctx.Err() == nil {
				tr.note(from, r.dial(from, at, 5*time.Second))
				<-pause.C
			}
		})
	}
	r.t.Cleanup(cancel)
	tr.flows()
	return tr
}

func (tr *traffic) note(from string, res lab.Result) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.made[from]++
	if res.Kind != lab.OK {
		begun := time.Now().Add(-res.Took).UTC().Format("15:04:05.000") // to be compared with logs
		tr.failed = append(tr.failed, fmt.Sprintf("%s, begun at %s: %s %s", from, begun, res.Kind, res.Err))
	}
}

// flows waits until every client has made some more connections.
func (tr *traffic) flows() {
	tr.t.Helper()
	tr.mu.Lock()
	before := maps.Clone(tr.made)
	tr.mu.Unlock()
	eventually(tr.t, "every client makes connections", func() bool {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		for _, from := range clients {
			if tr.made[from] < before[from]+5 {
				return false
			}
		}
		return true
	})
}

// stop ends the traffic and fails the test if any connection failed.
func (tr *traffic) stop() {
	tr.t.Helper()
	tr.cancel()
	tr.wg.Wait()
	for i, f := range tr.failed {
		if i == 10 {
			tr.t.Errorf("and %d more", len(tr.failed)-i)
			break
		}
		tr.t.Error("a connection failed:", f)
	}
	tr.t.Logf("connections made: %v", tr.made)
}
