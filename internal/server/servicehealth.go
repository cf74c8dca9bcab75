// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// ReasonHealthCheck is the reason of the Warning event about a healthCheckNodePort
// that cannot be served, as kube-proxy has it.
const ReasonHealthCheck = "FailedToStartServiceHealthcheck"

// addrsPeriod is how often the node's addresses are read while somebody needs them.
const addrsPeriod = 5 * time.Second

// ServiceReporter tells the owner of a Service about it. It must not block.
type ServiceReporter interface {
	ServiceEvent(obj lb.Object, eventtype, reason, message string)
}

// ServiceHealthOptions describe a ServiceHealth.
type ServiceHealthOptions struct {
	Healthy  func() bool          // whether the proxy is; the node does not count
	Addrs    lb.NodePortAddresses // where the ports are
	Reporter ServiceReporter      // may be nil
	Log      *slog.Logger

	Local  func() ([]netip.Addr, error)                                // the addresses of this node; nil: those of its devices
	Listen func(context.Context, string, string) (net.Listener, error) // nil: net.ListenConfig's
}

// ServiceHealth answers on the healthCheckNodePorts of Services how many of their
// endpoints are on this node. Its methods may be called from any goroutine and do not
// block; Run does the work and is called once.
type ServiceHealth struct {
	opts  ServiceHealthOptions
	dirty chan struct{} // capacity 1

	mu     sync.Mutex
	checks map[lb.Object]lb.HealthCheck
	owners map[uint16][]lb.Object // who wants a port; the first has it
	node   lb.Node
	at     lb.NodePortAddresses

	// Owned by Run.
	open map[endpoint]listening
	told map[lb.Object]string // what was last reported of a Service
	wait sync.WaitGroup       // for servers
}

// endpoint is where one listener is.
type endpoint struct {
	network string // tcp4 or tcp6
	addr    netip.AddrPort
}

// listening is an open listener and who answers at it.
type listening struct {
	net.Listener
	server *http.Server
}

// NewServiceHealth returns a ServiceHealth that knows no Service.
func NewServiceHealth(o ServiceHealthOptions) *ServiceHealth {
	if o.Local == nil {
		o.Local = deviceAddrs
	}
	if o.Listen == nil {
		var lc net.ListenConfig
		o.Listen = lc.Listen
	}
	return &ServiceHealth{
		opts:   o,
		at:     o.Addrs,
		dirty:  make(chan struct{}, 1),
		checks: map[lb.Object]lb.HealthCheck{},
		owners: map[uint16][]lb.Object{},
		open:   map[endpoint]listening{},
		told:   map[lb.Object]string{},
	}
}

// Set says what some objects answer; a HealthCheck without a port is none. Ports may
// go from one of them to another.
func (h *ServiceHealth) Set(checks map[lb.Object]lb.HealthCheck) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed := false
	var moving []lb.Object
	for obj, hc := range checks {
		old := h.checks[obj]
		changed = changed || old.Port != hc.Port || old.Served != hc.Served
		if old.Port != hc.Port {
			h.leave(obj, old.Port)
			moving = append(moving, obj)
		}
		h.checks[obj] = hc
		if hc.Port == 0 {
			delete(h.checks, obj)
		}
	}
	slices.SortFunc(moving, compareObjects) // who comes first must not be left to chance
	for _, obj := range moving {
		if port := checks[obj].Port; port != 0 {
			h.owners[port] = append(h.owners[port], obj)
		}
	}
	if changed {
		h.nudge()
	}
}

func compareObjects(a, b lb.Object) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// leave makes obj want port no longer. h.mu is held.
func (h *ServiceHealth) leave(obj lb.Object, port uint16) {
	h.owners[port] = slices.DeleteFunc(h.owners[port], func(o lb.Object) bool { return o == obj })
	if len(h.owners[port]) == 0 {
		delete(h.owners, port)
	}
}

// Addrs returns where ports are.
func (h *ServiceHealth) Addrs() lb.NodePortAddresses {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}

// SetAddrs says where ports are from now on.
func (h *ServiceHealth) SetAddrs(at lb.NodePortAddresses) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = at
	h.nudge()
}

// SetNode says what the Node object says, for its addresses.
func (h *ServiceHealth) SetNode(n lb.Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.node.Addrs, n.Addrs) {
		h.node = n
		h.nudge()
	}
}

func (h *ServiceHealth) nudge() {
	select {
	case h.dirty <- struct{}{}:
	default: // Run has not yet looked
	}
}

// Run listens where it should until ctx ends. It leaves no listener behind.
func (h *ServiceHealth) Run(ctx context.Context) error {
	defer h.wait.Wait()
	defer func() {
		for e := range h.open {
			h.close(e)
		}
	}()
	for {
		var again <-chan time.Time
		if d := h.sync(ctx); d > 0 {
			again = time.After(d)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.dirty:
		case <-again:
		}
	}
}

// sync opens and closes listeners until they are those that are wanted. It returns
// when to look again without being told to; 0: never.
func (h *ServiceHealth) sync(ctx context.Context) time.Duration {
	wanted, failed, changing := h.wanted()
	for e := range h.open {
		if _, ok := wanted[e]; !ok {
			h.close(e)
		}
	}
	var again time.Duration
	if changing {
		again = addrsPeriod
	}
	for _, e := range slices.SortedFunc(maps.Keys(wanted), endpoint.compare) {
		if _, ok := h.open[e]; ok {
			continue
		}
		if err := h.listen(ctx, e); err != nil {
			again = bindRetry
			if failed[wanted[e]] == nil {
				failed[wanted[e]] = err
			}
		}
	}
	if ctx.Err() == nil {
		h.tell(failed)
	}
	return again
}

func (e endpoint) compare(o endpoint) int { return e.addr.Compare(o.addr) }

// wanted returns whose listeners there should be, and why Services do not get one.
// changing says that it depends on the addresses of the node. While those cannot be
// read, what is open stays.
func (h *ServiceHealth) wanted() (wanted map[endpoint]lb.Object, failed map[lb.Object]error, changing bool) {
	at := h.places()
	h.mu.Lock()
	defer h.mu.Unlock()
	wanted, failed = map[endpoint]lb.Object{}, map[lb.Object]error{}
	for port, owners := range h.owners {
		obj := owners[0]
		for _, other := range owners[1:] {
			failed[other] = fmt.Errorf("port %d is that of Service %s", port, obj)
		}
		for i := range families {
			if !h.checks[obj].Served[i] {
				continue
			}
			changing = changing || at[i].changing
			if at[i].err != nil {
				failed[obj] = at[i].err
			}
			for _, a := range at[i].addrs {
				wanted[endpoint{networks[i], netip.AddrPortFrom(a, port)}] = obj
			}
		}
	}
	for e := range h.open {
		i := slices.Index(networks[:], e.network)
		if owners := h.owners[e.addr.Port()]; at[i].err != nil && len(owners) > 0 && h.checks[owners[0]].Served[i] {
			wanted[e] = owners[0]
		}
	}
	return wanted, failed, changing
}

// networks are net.Listen's names of the families.
var networks = [2]string{"tcp4", "tcp6"}

// places are the addresses of one family at which ports are served.
type places struct {
	addrs    []netip.Addr
	changing bool // they are not the same for ever
	err      error
}

// places returns where ports of each family are served: at the unspecified address, if
// that is the same as at all. h.mu is not held: the kernel may take its time.
func (h *ServiceHealth) places() (at [2]places) {
	h.mu.Lock()
	node, addrs, needed := h.node, h.at, len(h.owners) > 0
	h.mu.Unlock()
	var local []netip.Addr
	var err error
	read := false
	for i, f := range families {
		if everywhere(addrs, f, node) {
			at[i] = places{addrs: []netip.Addr{f.Unspecified()}}
			continue
		}
		at[i].changing = true
		if needed && !read {
			read = true
			local, err = h.opts.Local()
		}
		if err != nil {
			at[i].err = fmt.Errorf("addresses of this node: %w", err)
			continue
		}
		for _, a := range local {
			if lb.FamilyOf(a) == f && !a.IsLinkLocalUnicast() && addrs.Serves(a, node) {
				at[i].addrs = append(at[i].addrs, a)
			}
		}
	}
	return at
}

// everywhere tells whether a serves every address of family f.
func everywhere(a lb.NodePortAddresses, f lb.Family, node lb.Node) bool {
	said := a.Primary && slices.ContainsFunc(node.Addrs, func(n netip.Addr) bool { return lb.FamilyOf(n) == f })
	for _, p := range a.Ranges {
		if lb.FamilyOf(p.Addr()) == f {
			said = true
			if p.Bits() == 0 {
				return true
			}
		}
	}
	return !said
}

// deviceAddrs returns the addresses of the node's devices.
func deviceAddrs() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range found {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			addrs = append(addrs, p.Addr())
		}
	}
	return addrs, nil
}

// listen opens e. A family that this kernel does not have is no error: nobody can ask
// at it.
func (h *ServiceHealth) listen(ctx context.Context, e endpoint) error {
	ln, err := h.opts.Listen(ctx, e.network, e.addr.String())
	switch {
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return nil
	case err != nil:
		return err
	}
	family := slices.Index(networks[:], e.network)
	handler := func(w http.ResponseWriter, _ *http.Request) { h.answer(w, e.addr.Port(), family) }
	srv := httpServer(http.HandlerFunc(handler), h.opts.Log)
	h.open[e] = listening{ln, srv}
	h.wait.Go(func() { _ = srv.Serve(ln) }) // ends when it is closed
	return nil
}

// close ends the listener at e, which is free then, and its connections.
func (h *ServiceHealth) close(e endpoint) {
	_ = h.open[e].Listener.Close() // the server would do it a little later
	_ = h.open[e].server.Close()
	delete(h.open, e)
}

// tell reports what failed, once for each distinct failure of a Service.
func (h *ServiceHealth) tell(failed map[lb.Object]error) {
	for obj := range h.told {
		if failed[obj] == nil {
			delete(h.told, obj)
		}
	}
	for obj, err := range failed {
		msg := fmt.Sprintf("healthCheckNodePort is not served: %v", err)
		if h.told[obj] == msg {
			continue
		}
		h.told[obj] = msg
		h.opts.Log.Warn("health check port not served; trying again", "service", obj, "error", err)
		if h.opts.Reporter != nil {
			h.opts.Reporter.ServiceEvent(obj, "Warning", ReasonHealthCheck, msg)
		}
	}
}

// healthCheckAnswer has kube-proxy's field names.
// Source: Kubernetes 1.37 pkg/proxy/healthcheck/service_health.go.
type healthCheckAnswer struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

// answer says how many endpoints the owner of port has here, in the family of the
// given index.
func (h *ServiceHealth) answer(w http.ResponseWriter, port uint16, family int) {
	h.mu.Lock()
	var obj lb.Object
	if owners := h.owners[port]; len(owners) > 0 {
		obj = owners[0]
	}
	n := h.checks[obj].Ready[family]
	h.mu.Unlock()
	out := healthCheckAnswer{LocalEndpoints: n, ServiceProxyHealthy: h.opts.Healthy()}
	out.Service.Namespace, out.Service.Name = obj.Namespace, obj.Name
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(n))
	code := http.StatusServiceUnavailable
	if n > 0 && out.ServiceProxyHealthy {
		code = http.StatusOK
	}
	writeJSON(w, code, out)
}
