// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// listeners is a network that remembers who listens. An address can be taken by
// others, and a network can be missing.
type listeners struct {
	mu      sync.Mutex
	open    map[string]*fakeListener // by network and address
	foreign map[string]bool
	opened  int
	local   []netip.Addr
	broken  error // reading local fails with it
}

type fakeListener struct {
	all    *listeners
	key    string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (ls *listeners) listen(_ context.Context, network, addr string) (net.Listener, error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	key := network + " " + addr
	switch {
	case ls.foreign[network]:
		return nil, syscall.EAFNOSUPPORT
	case ls.foreign[key] || ls.open[key] != nil:
		return nil, fmt.Errorf("listen %s: %w", key, syscall.EADDRINUSE)
	}
	l := &fakeListener{all: ls, key: key, conns: make(chan net.Conn), closed: make(chan struct{})}
	ls.open[key] = l
	ls.opened++
	return l, nil
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *fakeListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.all.mu.Lock()
		defer l.all.mu.Unlock()
		delete(l.all.open, l.key)
	})
	return nil
}

func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (ls *listeners) addrs() ([]netip.Addr, error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.local, ls.broken
}

func (ls *listeners) set(f func()) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	f()
}

// checkRig is a ServiceHealth that runs on listeners.
type checkRig struct {
	*ServiceHealth
	*listeners
	t      *testing.T
	events []string
	live   bool
	cancel context.CancelFunc
	done   chan error
}

func (r *checkRig) ServiceEvent(obj lb.Object, eventtype, reason, message string) {
	r.events = append(r.events, fmt.Sprint(obj, " ", eventtype, " ", reason, ": ", message))
}

func inCheckRig(t *testing.T, addrs lb.NodePortAddresses, f func(r *checkRig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &checkRig{
			listeners: &listeners{open: map[string]*fakeListener{}, foreign: map[string]bool{}},
			t:         t, live: true, done: make(chan error, 1),
		}
		r.ServiceHealth = NewServiceHealth(ServiceHealthOptions{
			Healthy: func() bool { return r.live }, Addrs: addrs, Local: r.addrs, Reporter: r,
			Log: slog.New(slog.DiscardHandler), Listen: r.listeners.listen,
		})
		var ctx context.Context
		ctx, r.cancel = context.WithCancel(t.Context())
		go func() { r.done <- r.Run(ctx) }()
		f(r)
		r.cancel()
		synctest.Wait()
		if err := <-r.done; err != nil {
			t.Error(err)
		}
		r.listens()
		if len(r.ServiceHealth.open) > 0 {
			t.Errorf("%d listeners are remembered after the end", len(r.ServiceHealth.open))
		}
	})
}

// listens fails unless there are listeners at want and nowhere else.
func (r *checkRig) listens(want ...string) {
	r.t.Helper()
	synctest.Wait()
	r.change(func() {
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(r.listeners.open)); !slices.Equal(got, want) {
			r.t.Errorf("listens at %q, want %q", got, want)
		}
	})
}

// put says what one object answers.
func (r *checkRig) put(obj lb.Object, hc lb.HealthCheck) {
	r.Set(map[lb.Object]lb.HealthCheck{obj: hc})
}

func (r *checkRig) change(f func()) { r.listeners.set(f) }

// told fails unless the events since the last call contain the texts, one each.
func (r *checkRig) told(want ...string) {
	r.t.Helper()
	synctest.Wait()
	slices.Sort(r.events)
	ok := len(r.events) == len(want)
	for i := range want {
		ok = ok && strings.Contains(r.events[i], want[i])
	}
	if !ok {
		r.t.Errorf("events %q, want %q", r.events, want)
	}
	r.events = nil
}

var (
	web, api = lb.Object{Namespace: "shop", Name: "web"}, lb.Object{Namespace: "shop", Name: "api"}
	both     = [2]bool{true, true}
	v4only   = [2]bool{true, false}
)

func TestHealthCheckListeners(t *testing.T) {
	inCheckRig(t, lb.NodePortAddresses{}, func(r *checkRig) {
		r.put(web, lb.HealthCheck{Port: 30001, Served: both})
		r.put(api, lb.HealthCheck{Port: 30002, Served: v4only})
		r.listens("tcp4 0.0.0.0:30001", "tcp4 0.0.0.0:30002", "tcp6 [::]:30001")
		r.put(web, lb.HealthCheck{Port: 30001, Served: both, Ready: [2]int{3, 1}})
		r.listens("tcp4 0.0.0.0:30001", "tcp4 0.0.0.0:30002", "tcp6 [::]:30001")
		if r.opened != 3 {
			t.Errorf("%d listeners were opened, want 3: another number of endpoints is no reason", r.opened)
		}
		r.put(web, lb.HealthCheck{Port: 30003, Served: both}) // the port moves
		r.listens("tcp4 0.0.0.0:30003", "tcp4 0.0.0.0:30002", "tcp6 [::]:30003")
		r.put(web, lb.HealthCheck{Port: 30003, Served: v4only}) // the family goes
		r.listens("tcp4 0.0.0.0:30003", "tcp4 0.0.0.0:30002")
		r.put(api, lb.HealthCheck{}) // the Service is deleted, or is another one
		r.put(lb.Object{Name: "never"}, lb.HealthCheck{})
		r.listens("tcp4 0.0.0.0:30003")
		r.told()
	})
}

func TestTwoServicesWithOnePort(t *testing.T) {
	inCheckRig(t, lb.NodePortAddresses{}, func(r *checkRig) {
		r.put(web, lb.HealthCheck{Port: 30001, Served: v4only, Ready: [2]int{2, 0}})
		r.put(api, lb.HealthCheck{Port: 30001, Served: both, Ready: [2]int{5, 5}})
		r.listens("tcp4 0.0.0.0:30001")
		r.told("shop/api Warning FailedToStartServiceHealthcheck: healthCheckNodePort is not served: port 30001 is that of Service shop/web")
		r.put(api, lb.HealthCheck{Port: 30001, Served: both, Ready: [2]int{6, 6}})
		r.told()
		r.answers(30001, 0, 200, `{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}`, "2")
		r.put(web, lb.HealthCheck{}) // it is the other one's turn, also in its other family
		r.listens("tcp4 0.0.0.0:30001", "tcp6 [::]:30001")
		r.answers(30001, 1, 200, `{"service":{"namespace":"shop","name":"api"},"localEndpoints":6,"serviceProxyHealthy":true}`, "6")
		r.told()
	})
}

// answers asks the handler of a port.
func (r *checkRig) answers(port uint16, family, code int, body, weight string) {
	r.t.Helper()
	rec := httptest.NewRecorder()
	r.answer(rec, port, family)
	if rec.Code != code || strings.TrimSpace(rec.Body.String()) != body || rec.Header().Get("X-Load-Balancing-Endpoint-Weight") != weight {
		r.t.Errorf("got %d %s, weight %q\nwant %d %s, weight %q",
			rec.Code, rec.Body, rec.Header().Get("X-Load-Balancing-Endpoint-Weight"), code, body, weight)
	}
}

func TestHealthCheckAnswers(t *testing.T) {
	h := NewServiceHealth(ServiceHealthOptions{})
	for _, tc := range []struct {
		name    string
		ready   int
		healthy bool
		code    int
	}{
		{"endpoints", 3, true, 200},
		{"no endpoint", 0, true, 503},
		{"the proxy is stuck", 3, false, 503},
		{"neither", 0, false, 503},
	} {
		for family := range families {
			r := &checkRig{ServiceHealth: h, t: t}
			h.opts.Healthy = func() bool { return tc.healthy }
			hc := lb.HealthCheck{Port: 30001, Served: both, Ready: [2]int{7, 7}}
			hc.Ready[family] = tc.ready
			r.put(web, hc)
			r.answers(30001, family, tc.code, fmt.Sprintf(
				`{"service":{"namespace":"shop","name":"web"},"localEndpoints":%d,"serviceProxyHealthy":%t}`, tc.ready, tc.healthy), fmt.Sprint(tc.ready))
		}
	}
}

func TestHealthCheckPortIsTaken(t *testing.T) {
	inCheckRig(t, lb.NodePortAddresses{}, func(r *checkRig) {
		r.change(func() { r.foreign["tcp4 0.0.0.0:30001"] = true })
		r.put(web, lb.HealthCheck{Port: 30001, Served: both})
		r.listens("tcp6 [::]:30001")
		r.told("shop/web Warning FailedToStartServiceHealthcheck: healthCheckNodePort is not served: listen tcp4 0.0.0.0:30001: address already in use")
		<-time.After(10 * bindRetry)
		r.told() // once is enough
		r.change(func() { clear(r.foreign) })
		<-time.After(bindRetry)
		r.listens("tcp4 0.0.0.0:30001", "tcp6 [::]:30001")
		r.change(func() { r.foreign["tcp4 0.0.0.0:30002"] = true })
		r.put(web, lb.HealthCheck{Port: 30002, Served: v4only})
		r.listens()
		r.told("address already in use") // another failure
	})
}

func TestHealthCheckFamilyOfNoKernel(t *testing.T) {
	inCheckRig(t, lb.NodePortAddresses{}, func(r *checkRig) {
		r.change(func() { r.foreign["tcp6"] = true })
		r.put(web, lb.HealthCheck{Port: 30001, Served: both})
		r.listens("tcp4 0.0.0.0:30001")
		r.told()
	})
}

func TestHealthCheckAtSomeAddresses(t *testing.T) {
	addr := netip.MustParseAddr
	ranges := lb.NodePortAddresses{Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	inCheckRig(t, ranges, func(r *checkRig) {
		r.change(func() { r.local = []netip.Addr{addr("127.0.0.1"), addr("192.0.2.1"), addr("2001:db8::1")} })
		r.put(web, lb.HealthCheck{Port: 30001, Served: both})
		r.listens("tcp4 192.0.2.1:30001", "tcp6 [::]:30001")
		r.change(func() { r.local = []netip.Addr{addr("192.0.2.2"), addr("192.0.2.3"), addr("198.51.100.1")} })
		<-time.After(addrsPeriod)
		r.listens("tcp4 192.0.2.2:30001", "tcp4 192.0.2.3:30001", "tcp6 [::]:30001")
		r.told()
	})
}

// TestHealthCheckWhileAddressesAreUnknown: what is open stays, and what nobody wants
// any more goes.
func TestHealthCheckWhileAddressesAreUnknown(t *testing.T) {
	addr := netip.MustParseAddr
	ranges := lb.NodePortAddresses{Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	inCheckRig(t, ranges, func(r *checkRig) {
		r.change(func() { r.local = []netip.Addr{addr("192.0.2.2"), addr("192.0.2.3")} })
		r.put(web, lb.HealthCheck{Port: 30001, Served: both})
		r.put(api, lb.HealthCheck{Port: 30002, Served: v4only})
		r.listens("tcp4 192.0.2.2:30001", "tcp4 192.0.2.3:30001", "tcp6 [::]:30001", "tcp4 192.0.2.2:30002", "tcp4 192.0.2.3:30002")
		r.change(func() { r.local, r.broken = nil, errors.New("no netlink") })
		<-time.After(addrsPeriod)
		r.listens("tcp4 192.0.2.2:30001", "tcp4 192.0.2.3:30001", "tcp6 [::]:30001", "tcp4 192.0.2.2:30002", "tcp4 192.0.2.3:30002")
		r.told("shop/api", "addresses of this node: no netlink")
		r.put(api, lb.HealthCheck{Port: 30003, Served: both}) // nobody knows where
		r.listens("tcp4 192.0.2.2:30001", "tcp4 192.0.2.3:30001", "tcp6 [::]:30001", "tcp6 [::]:30003")
		r.put(web, lb.HealthCheck{Port: 30001, Served: [2]bool{false, true}})
		r.listens("tcp6 [::]:30001", "tcp6 [::]:30003")
		r.put(web, lb.HealthCheck{})
		r.listens("tcp6 [::]:30003")
		r.change(func() { r.local, r.broken = []netip.Addr{addr("192.0.2.3")}, nil })
		<-time.After(addrsPeriod)
		r.listens("tcp4 192.0.2.3:30003", "tcp6 [::]:30003")
		r.told()
	})
}

// TestHealthCheckReadsAddressesWithoutTheLock: nobody waits for the kernel.
func TestHealthCheckReadsAddressesWithoutTheLock(t *testing.T) {
	ranges := lb.NodePortAddresses{Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	inCheckRig(t, ranges, func(r *checkRig) {
		held, reads := make(chan struct{}), 0
		r.opts.Local = func() ([]netip.Addr, error) { // Run has not begun to read
			reads++
			<-held
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		}
		r.put(web, lb.HealthCheck{Port: 30001, Served: v4only})
		synctest.Wait()
		done := false
		go func() {
			r.put(api, lb.HealthCheck{Port: 30002, Served: v4only})
			r.SetNode(lb.Node{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
			r.answers(30001, 0, 503, `{"service":{"namespace":"shop","name":"web"},"localEndpoints":0,"serviceProxyHealthy":true}`, "0")
			done = true
		}()
		synctest.Wait()
		if !done || reads != 1 {
			t.Errorf("all methods returned: %t after %d reads; want true while the first is under way", done, reads)
		}
		close(held)
		r.listens("tcp4 192.0.2.1:30001", "tcp4 192.0.2.1:30002")
	})
}

// TestPortsChangeHands within one Set: whoever is looked at first, nobody is told that
// a port is another's.
func TestPortsChangeHands(t *testing.T) {
	inCheckRig(t, lb.NodePortAddresses{}, func(r *checkRig) {
		one, two := lb.HealthCheck{Port: 30001, Served: v4only}, lb.HealthCheck{Port: 30002, Served: v4only}
		r.Set(map[lb.Object]lb.HealthCheck{web: one, api: two})
		for range 20 {
			one, two = two, one
			r.Set(map[lb.Object]lb.HealthCheck{web: one, api: two})
			r.listens("tcp4 0.0.0.0:30001", "tcp4 0.0.0.0:30002")
			r.told()
			r.Set(map[lb.Object]lb.HealthCheck{web: {}, api: one})
			r.listens(fmt.Sprint("tcp4 0.0.0.0:", one.Port))
			r.Set(map[lb.Object]lb.HealthCheck{web: one, api: two})
			r.listens("tcp4 0.0.0.0:30001", "tcp4 0.0.0.0:30002")
			r.told()
		}
		r.Set(map[lb.Object]lb.HealthCheck{web: {}, api: {}})
		for range 20 { // who asks at once is served by name
			r.Set(map[lb.Object]lb.HealthCheck{web: one, api: one})
			r.listens(fmt.Sprint("tcp4 0.0.0.0:", one.Port))
			r.told(fmt.Sprintf("shop/web Warning FailedToStartServiceHealthcheck: healthCheckNodePort is not served: port %d is that of Service shop/api", one.Port))
			r.Set(map[lb.Object]lb.HealthCheck{web: {}, api: {}})
			r.listens()
		}
	})
}

// TestHealthCheckNotAtLinkLocal: such an address means nothing without its link.
func TestHealthCheckNotAtLinkLocal(t *testing.T) {
	ranges := lb.NodePortAddresses{Ranges: []netip.Prefix{netip.MustParsePrefix("fc00::/6")}}
	inCheckRig(t, ranges, func(r *checkRig) {
		r.change(func() { r.local = []netip.Addr{netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fd00::1")} })
		r.put(web, lb.HealthCheck{Port: 30001, Served: [2]bool{false, true}})
		r.listens("tcp6 [fd00::1]:30001")
	})
}

func TestHealthCheckAtPrimary(t *testing.T) {
	addr := netip.MustParseAddr
	inCheckRig(t, lb.NodePortAddresses{Primary: true}, func(r *checkRig) {
		r.change(func() { r.local = []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2"), addr("fe80::1")} })
		r.put(web, lb.HealthCheck{Port: 30001, Served: v4only})
		r.listens("tcp4 0.0.0.0:30001")
		r.SetNode(lb.Node{Known: true, Addrs: []netip.Addr{addr("192.0.2.2")}})
		r.listens("tcp4 192.0.2.2:30001")
		r.SetNode(lb.Node{Known: true, Addrs: []netip.Addr{addr("192.0.2.1")}})
		r.listens("tcp4 192.0.2.1:30001")
	})
}

func TestHealthCheckAddressesChange(t *testing.T) {
	addr := netip.MustParseAddr
	inCheckRig(t, lb.NodePortAddresses{}, func(r *checkRig) {
		r.change(func() { r.local = []netip.Addr{addr("192.0.2.1"), addr("198.51.100.1")} })
		r.put(web, lb.HealthCheck{Port: 30001, Served: v4only})
		r.listens("tcp4 0.0.0.0:30001")
		for _, at := range []string{"192.0.2.1", "198.51.100.1"} {
			r.SetAddrs(lb.NodePortAddresses{Ranges: []netip.Prefix{netip.PrefixFrom(addr(at), 24).Masked()}})
			r.listens("tcp4 " + at + ":30001")
		}
		r.SetAddrs(lb.NodePortAddresses{})
		r.listens("tcp4 0.0.0.0:30001")
	})
}

func TestEverywhere(t *testing.T) {
	node := lb.Node{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	for _, tc := range []struct {
		ranges  string
		primary bool
		v4, v6  bool
	}{
		{"", false, true, true},
		{"192.0.2.0/24", false, false, true},
		{"0.0.0.0/0 ::/0", false, true, true},
		{"127.0.0.0/8 ::1/128", false, false, false},
		{"127.0.0.0/8 0.0.0.0/0", false, true, true},
		{"", true, false, true}, // the Node has no IPv6 address
		{"::/0", true, false, true},
	} {
		a := lb.NodePortAddresses{Primary: tc.primary}
		for _, text := range strings.Fields(tc.ranges) {
			a.Ranges = append(a.Ranges, netip.MustParsePrefix(text))
		}
		if v4, v6 := everywhere(a, lb.IPv4, node), everywhere(a, lb.IPv6, node); v4 != tc.v4 || v6 != tc.v6 {
			t.Errorf("%+v: everywhere %t, %t, want %t, %t", a, v4, v6, tc.v4, tc.v6)
		}
	}
}
