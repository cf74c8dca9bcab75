// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// envOutage is how long the API server is away in TestAPIServerAway, as in 10m; without
// it, so long that the client finds the silence out and waits as long as it ever does
// between attempts.
const envOutage = "LBPROXY_TEST_OUTAGE"

// The client finds out that an open connection is silent by a ping: 30 s without a word,
// then 15 s without an answer. A short outage has a client with less patience.
var (
	shortOutage  = 24 * time.Second
	lessPatience = []string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS=4", "HTTP2_PING_TIMEOUT_SECONDS=3"}
)

// regained is within what a change is there after an outage: 8 s between attempts, and a
// busy machine.
const regained = 30 * time.Second

const writes = "lbproxy_dataplane_writes_total"

// away is a node, and a cluster of which the API server goes away.
type away struct {
	*rig
	api   *apiServer
	agent *agent
	round int
	dials *traffic
	conns []*lab.Conn // from before any outage
}

// TestAPIServerAway takes the API server away. Connections are made and live all the
// time, nothing is written to the kernel, and /healthz stays as it is. When it is back,
// without the history that watches ask for, what changed in the meantime is there, and
// no more is written for it than for the same changes before.
func TestAPIServerAway(t *testing.T) {
	long, env := shortOutage, lessPatience
	if text := os.Getenv(envOutage); text != "" {
		var err error
		if long, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", envOutage, err)
		}
		env = nil
	}
	aw := newAway(t, env)
	aw.dials = aw.trafficEvery(webVIP, 50*time.Millisecond)
	for _, from := range clients {
		c, res := aw.lab.Host(from).Open(t.Context(), lab.Request{Proto: lab.TCP, To: webVIP.addr()})
		if c == nil {
			t.Fatalf("%s: %s %s", from, res.Kind, res.Err)
		}
		aw.conns = append(aw.conns, c)
	}
	before := aw.settled()
	aw.edit("backend2")
	aw.followsEdit("backend2")
	most := aw.settled() - before
	t.Logf("changes with an API server: %d writes", most)

	t.Log("it is silent with watches open, then it refuses connections")
	aw.outage("backend2", "backend3", most, func() {
		half := time.Now().Add(long / 2)
		aw.api.silence()
		aw.edit("backend3") // nobody hears of it
		aw.wait(half)
		aw.api.stop()
		aw.wait(half.Add(long / 2))
	})
	aw.agent.awaitLog("reflector=services", "client connection lost")
	t.Log("it ends: watches go on later, and have expired")
	aw.outage("backend3", "backend1", most, func() {
		aw.api.stop()
		aw.edit("backend1")
		aw.wait(time.Now().Add(time.Second))
	})
	aw.agent.awaitLog("reflector=services", "there is no history")
	aw.dials.stop()
}

// outage takes the API server away, during which everything is served as before with
// pod, and returns it. Then next is served, for at most so many writes.
func (aw *away) outage(pod, next string, most int, away func()) {
	aw.t.Helper()
	before, began := aw.writes(), time.Now()
	away()
	aw.stays(pod)
	if n := aw.writes() - before; n != 0 {
		aw.t.Errorf("%d writes while the API server was away", n)
	}
	if code, body, err := aw.get(healthAddr, "/healthz"); code != http.StatusOK {
		aw.t.Errorf("healthz while the API server is away: %d %s %v", code, body, err)
	}
	aw.api.start()
	back := time.Now()
	aw.followsEdit(next)
	aw.t.Logf("away for %s; changes of that time were there %s after its end",
		back.Sub(began).Round(time.Second), time.Since(back).Round(10*time.Millisecond))
	if n := aw.settled() - before; n == 0 || n > most {
		aw.t.Errorf("%d writes for what changed meanwhile, want 1 to %d, as with an API server", n, most)
	}
	aw.wait(time.Now())
}

// newAway starts an agent with more in its environment.
func newAway(t *testing.T, env []string) *away {
	t.Helper()
	r := newRig(t)
	aw := &away{rig: r, api: r.apiServer()}
	aw.api.put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: lab.Node}})
	for i := range 100 { // which nobody touches
		aw.offer(fmt.Sprint("still-", i), fmt.Sprintf("10.96.2.%d", i+1), "backend1", "backend2")
	}
	aw.offer("web", webVIP.ip(), "backend1", "backend2")
	aw.offer("moving", nextVIP.ip(), "backend1")
	aw.offer(aw.brief(0))
	cmd := exec.CommandContext(t.Context(), program, "run", "--kubeconfig="+aw.api.kubeconfig, "--node-name="+lab.Node,
		"--cluster-cidr="+lab.ClusterPods4.String()+","+lab.ClusterPods6.String(), "--log-level=debug")
	cmd.Dir, cmd.Env = r.home, append(r.env(), env...)
	aw.agent = r.launch(cmd)
	aw.agent.awaitReady()
	return aw
}

// offer puts a Service with endpoints.
func (aw *away) offer(name, ip string, pods ...string) {
	aw.t.Helper()
	aw.api.put(apiService(name, ip), aw.apiSlice(name, pods...))
}

func apiService(name, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:      []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func (aw *away) apiSlice(name string, pods ...string) *discovery.EndpointSlice {
	port, portName, proto := int32(backendPort), "http", corev1.ProtocolTCP
	sl := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name + "-1", Labels: map[string]string{discovery.LabelServiceName: name},
		},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: &portName, Protocol: &proto, Port: &port}},
	}
	for _, pod := range pods {
		node := lab.Node
		sl.Endpoints = append(sl.Endpoints, discovery.Endpoint{
			Addresses: []string{aw.lab.Host(pod).Addr4.String()}, NodeName: &node,
		})
	}
	return sl
}

// brief is the Service that is there from one edit to the next.
func (aw *away) brief(round int) (name, ip, pod string) {
	return fmt.Sprint("brief-", round), netip.AddrFrom4([4]byte{10, 96, 3, byte(1 + round)}).String(), "backend1"
}

// edit moves a Service to a pod, deletes one and adds one.
func (aw *away) edit(pod string) {
	aw.t.Helper()
	aw.api.put(aw.apiSlice("moving", pod))
	name, ip, _ := aw.brief(aw.round)
	aw.api.drop(apiService(name, ip), aw.apiSlice(name))
	aw.round++
	aw.offer(aw.brief(aw.round))
}

// at is where a brief Service answers.
func (aw *away) at(round int) vip {
	_, ip, _ := aw.brief(round)
	return vip(ip + ":80")
}

// followsEdit waits until clients see what edit has written.
func (aw *away) followsEdit(pod string) {
	aw.t.Helper()
	within(aw.t, regained, "what was changed, added and deleted is served", func() bool {
		return aw.dial("client1", nextVIP, time.Second).Backend == pod &&
			aw.dial("client1", aw.at(aw.round), time.Second).Backend == "backend1" &&
			aw.dial("client1", aw.at(aw.round-1), silence).Kind != lab.OK
	})
	aw.follows(nextVIP, pod)
	aw.follows(aw.at(aw.round), "backend1")
	aw.gone(aw.at(aw.round - 1))
}

// stays checks that everything is as before the last edit.
func (aw *away) stays(pod string) {
	aw.t.Helper()
	aw.serves(nextVIP, pod)
	aw.serves(aw.at(aw.round-1), "backend1")
	aw.gone(aw.at(aw.round))
}

// wait waits until end, and longer until connections have been made since. Those that are
// open live.
func (aw *away) wait(end time.Time) {
	aw.t.Helper()
	for again := true; again; again = time.Now().Before(end) {
		<-time.After(min(time.Until(end), 5*time.Second))
		aw.dials.flows()
		for i, c := range aw.conns {
			if err := c.Ping(aw.t.Context()); err != nil {
				aw.t.Errorf("%s: a connection from before: %v", clients[i], err)
			}
		}
	}
}

// writes is how many changes of the kernel's tables there have been.
func (aw *away) writes() int {
	aw.t.Helper()
	n, err := strconv.ParseFloat(aw.metric(writes), 64)
	if err != nil {
		aw.t.Fatalf("%s: %v", writes, err)
	}
	return int(n)
}

// settled is writes when what is left of earlier changes has been freed.
func (aw *away) settled() int {
	aw.t.Helper()
	const quiet = 7 // s: longer than it takes until a backend without connections is freed
	var last []int
	within(aw.t, patience, "writes end", func() bool {
		<-time.After(time.Second)
		last = append(last, aw.writes())
		tail := last[max(0, len(last)-quiet):]
		return len(tail) == quiet && len(slices.Compact(slices.Clone(tail))) == 1
	})
	return last[len(last)-1]
}
