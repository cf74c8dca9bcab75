// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// What the Services of the switching tests answer at, besides backendPort of TCP and UDP.
const (
	nodePort   = 30080 // of web, TCP and UDP
	quietPort  = 8081  // of backends that say nothing by themselves
	quietNode  = 30081 // the node port that leads there
	quietAt    = 81    // the port of web's cluster IPs that does
	held       = 40001 // a client's port, of those that sockets of the node get by themselves
	soon       = 20 * time.Second
	datagram   = 2 * time.Second // after which a client sends it again
	datagrams  = 3               // that it sends
	loadPause  = 50 * time.Millisecond
	heldPause  = 100 * time.Millisecond
	heldBytes  = 64
	oneService = "10.96.2.1:80" // two Services that lead to the same backend, quietly
	twoService = "10.96.2.2:80"
)

// switchedManifest is web, of both families and protocols with node ports, and two
// Services that share their only backend.
func (r *rig) switchedManifest() string {
	text := `apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {lbproxy.io/algorithm: round-robin}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: 10.96.1.1
  clusterIPs: [10.96.1.1, "fd00:10:96::11"]
  ports:
    - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
    - {name: dns, protocol: UDP, port: 80, targetPort: 8080, nodePort: 30080}
    - {name: quiet, port: 81, targetPort: 8081, nodePort: 30081}
`
	for i, family := range []string{"IPv4", "IPv6"} {
		var endpoints string
		for _, pod := range []string{"backend1", "backend2", "remote1"} {
			node := lab.Node
			if pod == "remote1" {
				node = lab.Node2
			}
			endpoints += fmt.Sprintf("\n  - {addresses: [%q], nodeName: %s}", r.lab.Host(pod).Addrs()[i], node)
		}
		text += fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-%s, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: %s
ports: [{name: http, port: 8080}, {name: dns, protocol: UDP, port: 8080}, {name: quiet, port: 8081}]
endpoints: %s
`, []string{"4", "6"}[i], family, endpoints)
	}
	for name, at := range map[string]vip{"one": oneService, "two": twoService} {
		text += "---\n" + strings.ReplaceAll(r.manifest(name, at, "backend1"), "8080", "8081")
	}
	return text
}

// scale is how many times as many connections there are as in CI: LBPROXY_TRIAL_SCALE.
var scale = func() int {
	n, err := strconv.Atoi(os.Getenv("LBPROXY_TRIAL_SCALE"))
	if err != nil || n < 1 {
		return 1
	}
	return n
}()

// target is where a client connects to.
type target struct {
	name string
	at   netip.AddrPort
}

// targets are web's cluster IPs and node ports, of both families.
func targets(port, node uint16) []target {
	return []target{
		{"cluster IP", netip.AddrPortFrom(addr("10.96.1.1"), port)},
		{"cluster IP of IPv6", netip.AddrPortFrom(addr("fd00:10:96::11"), port)},
		{"node port", netip.AddrPortFrom(lab.NodeAddr4, node)},
		{"node port of IPv6", netip.AddrPortFrom(lab.NodeAddr6, node)},
	}
}

// load is connections and exchanges that are made all the time, by every client to every
// target.
type load struct {
	t      *testing.T
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	made   map[string]int // by who does
	lost   int            // datagrams that were sent again
	slow   int            // connections that took as long as a SYN that was sent again
	failed []string
}

// startLoad goes on until stop.
func (r *rig) startLoad() *load {
	ctx, cancel := context.WithCancel(r.t.Context())
	l := &load{t: r.t, cancel: cancel, made: map[string]int{}}
	r.t.Cleanup(cancel)
	for _, from := range clients {
		for _, to := range targets(80, nodePort) {
			for _, proto := range []string{lab.TCP, lab.UDP} {
				name := fmt.Sprintf("%s of %s to the %s", proto, from, to.name)
				l.mu.Lock() // those before run already
				l.made[name] = 0
				l.mu.Unlock()
				for range min(scale, 2) {
					l.wg.Go(func() {
						pause := time.NewTicker(loadPause)
						defer pause.Stop()
						for ctx.Err() == nil {
							l.exchange(r, name, from, lab.Request{Proto: proto, To: to.at})
							<-pause.C
						}
					})
				}
			}
		}
	}
	l.flows()
	return l
}

// exchange makes one connection, or sends a datagram until it is answered. A datagram may
// be lost: that is how the packets of an old flow come to end.
func (l *load) exchange(r *rig, name, from string, req lab.Request) {
	req.Timeout = soon
	tries := 1
	if req.Proto == lab.UDP {
		req.Timeout, tries = datagram, datagrams
	}
	var res lab.Result
	for i := range tries {
		res = r.lab.Host(from).Dial(r.t.Context(), req)
		if res.Kind != lab.Timeout || i == tries-1 {
			break
		}
		l.mu.Lock()
		l.lost++
		l.mu.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.made[name]++
	if res.Kind == lab.OK && req.Proto == lab.TCP && res.Took > atOnce {
		l.slow++
	}
	if res.Kind != lab.OK {
		begun := time.Now().Add(-res.Took).UTC().Format("15:04:05.000") // to be compared with logs
		l.failed = append(l.failed, fmt.Sprintf("%s from %s, begun at %s: %s %s", name, res.Local, begun, res.Kind, res.Err))
	}
}

// flows waits until everything was done some more times.
func (l *load) flows() {
	l.t.Helper()
	before := l.counts()
	eventually(l.t, "every client connects to every target", func() bool {
		for name, n := range l.counts() {
			if n < before[name]+3 {
				return false
			}
		}
		return true
	})
}

func (l *load) counts() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[string]int{}
	for name, n := range l.made {
		counts[name] = n
	}
	return counts
}

// stop ends the load and fails the test if anything failed.
func (l *load) stop() {
	l.t.Helper()
	l.cancel()
	l.wg.Wait()
	total := 0
	for _, n := range l.made {
		total += n
	}
	for _, f := range l.failed[:min(10, len(l.failed))] {
		l.t.Error("failed:", f)
	}
	l.t.Logf("%d connections and exchanges, %d failed; %d datagrams were sent again, %d connections were slow", total, len(l.failed), l.lost, l.slow)
}

// old are connections that live through a switch: some talk all the time, some are idle,
// and some have not said a word before.
type old struct {
	r     *rig
	what  string
	busy  map[string]*lab.Conn
	quiet map[string]*lab.Conn
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu     sync.Mutex
	broken []string
	asked  int
}

// old opens connections from every client to web.
func (r *rig) old(what string) *old {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	r.t.Cleanup(cancel)
	o := &old{r: r, what: what, busy: map[string]*lab.Conn{}, quiet: map[string]*lab.Conn{}, stop: cancel}
	for _, from := range clients {
		for i, to := range targets(80, nodePort) {
			for n := range scale {
				name := fmt.Sprintf("%d, %s to the %s", n, from, to.name)
				o.busy[name] = r.hold(from, lab.Request{Proto: lab.TCP, To: to.at})
				o.quiet["idle, "+name] = r.hold(from, lab.Request{Proto: lab.TCP, To: to.at})
				o.quiet["silent, "+name] = r.hold(from, lab.Request{Proto: lab.Quiet, To: targets(quietAt, quietNode)[i].at})
			}
		}
	}
	for name, c := range o.busy {
		o.wg.Go(func() {
			pause := time.NewTicker(heldPause * time.Duration(scale))
			defer pause.Stop()
			for ctx.Err() == nil {
				o.ask(r.t.Context(), name, c)
				<-pause.C
			}
		})
	}
	return o
}

// hold opens a connection.
func (r *rig) hold(from string, req lab.Request) *lab.Conn {
	r.t.Helper()
	req.Timeout = soon
	c, res := r.lab.Host(from).Open(r.t.Context(), req)
	if res.Kind != lab.OK {
		r.t.Fatalf("open from %s to %s: %s %s", from, req.To, res.Kind, res.Err)
	}
	return c
}

func (o *old) ask(ctx context.Context, name string, c *lab.Conn) {
	err := c.Bulk(ctx, heldBytes)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.asked++; err != nil {
		o.broken = append(o.broken, fmt.Sprintf("%s: %v", name, err))
	}
}

// end checks that all connections still work, and closes them.
func (o *old) end() {
	o.r.t.Helper()
	ctx := o.r.bounded()
	o.stop()
	o.wg.Wait()
	for _, conns := range []map[string]*lab.Conn{o.quiet, o.busy} {
		for name, c := range conns {
			o.ask(ctx, name, c)
			if err := c.Close(ctx, "fin"); err != nil {
				o.r.t.Errorf("close %s: %v", name, err)
			}
		}
	}
	for _, b := range o.broken[:min(10, len(o.broken))] {
		o.r.t.Errorf("a connection of %s broke: %s", o.what, b)
	}
	o.r.t.Logf("%s: %d connections, asked %d times, %d failed", o.what, len(o.busy)+len(o.quiet), o.asked, len(o.broken))
}
