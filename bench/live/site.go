// SPDX-License-Identifier: Apache-2.0

package live

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/bench/control/fakeapi"
	"github.com/lbproxy/lbproxy/bench/internal/node"
	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/bench/internal/worker"
	"github.com/lbproxy/lbproxy/bench/scenario"
	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	clientPod  = "client"
	serverPod  = "server"
	peerPod    = "peer"
	startLimit = 4 * time.Minute // of a proxy with its Services
)

var (
	clientAddr = netip.MustParseAddr("10.144.0.2")
	serverAddr = netip.MustParseAddr("10.144.0.3")
	peerAddr   = netip.MustParseAddr("10.144.0.4")
)

// site is a lab with at most one proxy, and all that a scenario needs.
type site struct {
	*node.Node
	sc         *scenario.Scenario
	name       string   // of the proxy
	algorithms []string // that it balances by, each for a Service of its own
	services   int
	api        *fakeapi.Server
	peer       *peer
	client     *worker.Worker
	server     *worker.Worker
	groups     []groupState // by group
}

// groupState is what the API says of a group.
type groupState struct {
	*scenario.Group
	first   int // its first backend
	present bool
	weight  uint16
	holed   bool // packets to it are lost
}

// newSite builds one. The program is of lbproxy or kube-proxy.
func newSite(ctx context.Context, sc *scenario.Scenario, name string, algorithms []string, services int, programs map[string]string) (_ *site, err error) {
	s := &site{sc: sc, name: name, algorithms: algorithms, services: services, api: fakeapi.New()}
	s.restoreGroups()
	pods := []lab.PodSpec{{Name: clientPod, Addr4: clientAddr}, {Name: serverPod, Addr4: serverAddr}}
	if s.isPeer() {
		pods = append(pods, lab.PodSpec{Name: peerPod, Addr4: peerAddr})
	}
	l, err := lab.New(lab.Options{Name: "live", Pods: pods})
	if err != nil {
		return nil, err
	}
	if s.Node, err = node.New(l, s.api); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", name, err), s.Close())
		}
	}()
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	if err := s.fill(); err != nil {
		return nil, err
	}
	if err := s.launch(ctx, programs); err != nil {
		return nil, err
	}
	if err := s.warm(); err != nil {
		return nil, err
	}
	return s, s.settle(ctx)
}

// settle waits until the proxy has little to do, as it has after its start: what it does
// then is not what is measured.
func (s *site) settle(ctx context.Context) error {
	const look, limit, idle = 500 * time.Millisecond, 30 * time.Second, 0.05
	for begin := time.Now(); s.Cmd != nil && time.Since(begin) < limit; {
		before, err := s.meter()
		if err == nil {
			err = node.Sleep(ctx, look)
		}
		if err != nil {
			return err
		}
		if after, err := s.meter(); err != nil || after.proxy-before.proxy < idle*look.Seconds() {
			return err
		}
	}
	return nil
}

// isPeer tells whether the proxy is nginx or haproxy.
func (s *site) isPeer() bool { return s.name == "nginx" || s.name == "haproxy" }

// onAPI tells whether the proxy is told of backends by the API server.
func (s *site) onAPI() bool { return !s.Direct() && !s.isPeer() }

// connect leads the addresses of backends and clients to their pods, and starts workers.
func (s *site) connect(ctx context.Context) (err error) {
	if err := s.Lab.Host(serverPod).AddRange(backendRange); err != nil {
		return err
	}
	if err := s.Lab.Host(clientPod).AddRange(sourceRange); err != nil {
		return err
	}
	if err := s.Lab.Host(lab.Outside).Route(backendRange, lab.NodeAddr4); err != nil {
		return err
	}
	from := clientPod
	if s.sc.Live.Entry == "nodeport" {
		from = lab.Outside
	}
	if s.client, err = worker.Start(ctx, s.Lab.Host(from), workerKind); err != nil {
		return err
	}
	if s.server, err = worker.Start(ctx, s.Lab.Host(serverPod), workerKind); err != nil {
		return err
	}
	return s.server.Do(order{Verb: verbServe, Scenario: s.sc}, nil)
}

// Close ends everything.
func (s *site) Close() error {
	for _, w := range []*worker.Worker{s.client, s.server} {
		if w != nil {
			w.Stop()
		}
	}
	if s.peer != nil && s.peer.cmd != nil {
		s.peer.stop()
	}
	return s.Node.Close()
}

func (s *site) restoreGroups() {
	s.groups = nil
	first := 0
	for i := range s.sc.Backends {
		g := &s.sc.Backends[i]
		s.groups = append(s.groups, groupState{Group: g, first: first, present: !g.Absent, weight: *g.Weight})
		first += g.Count
	}
}

func (s *site) proto() corev1.Protocol {
	if t := s.sc.Live.Traffic; t == scenario.UDP || t == scenario.Packets {
		return corev1.ProtocolUDP
	}
	return corev1.ProtocolTCP
}

// fill tells the API of everything that there is.
func (s *site) fill() error {
	if !s.onAPI() {
		return nil
	}
	objects := []fakeapi.Object{node.Own()}
	for i := range s.services {
		objects = append(objects, s.service(i, s.algorithm(i)))
		for _, sl := range s.slices(i) {
			objects = append(objects, sl)
		}
	}
	for _, obj := range objects {
		if _, err := s.api.Put(obj); err != nil {
			return err
		}
	}
	return nil
}

// Direct tells whether there is no proxy.
func (s *site) Direct() bool { return s.name == "direct" }

// targeted tells whether Service i is one that requests go to. Where traffic is paced, the
// first ones are, one for each algorithm; elsewhere all are.
func (s *site) targeted(i int) bool { return !s.sc.Live.Paced() || i < len(s.algorithms) }

// algorithm is that of Service i.
func (s *site) algorithm(i int) string { return s.algorithms[min(i, len(s.algorithms)-1)] }

func (s *site) serviceName(i int) string { return fmt.Sprintf("service-%d", i) }

// service is number i.
func (s *site) service(i int, algorithm string) *corev1.Service {
	port := node.Port{Proto: s.proto(), Frontend: frontendPort}
	if s.sc.Live.Entry == "nodeport" && (s.sc.Live.Paced() && s.targeted(i) || !s.sc.Live.Paced() && i == s.services/2) {
		port.NodePort = uint16(nodePort)
		if s.sc.Live.Paced() {
			port.NodePort += uint16(i)
		}
	}
	svc := node.Service(s.serviceName(i), node.Plus(firstVIP, i), port)
	svc.Annotations = map[string]string{"lbproxy.io/algorithm": algorithm}
	if d := time.Duration(s.sc.SlowStart); d > 0 {
		svc.Annotations["lbproxy.io/slow-start"] = d.String()
	}
	if algorithm == scenario.LeastTime {
		svc.Annotations["lbproxy.io/least-time"] = s.sc.Signal
	}
	return svc
}

// slices are the endpoints of Service i, those of each group in a slice of its own, which
// has the group's weight.
func (s *site) slices(i int) []*discovery.EndpointSlice {
	if !s.targeted(i) { // one of the many around
		sl := node.Slice(s.serviceName(i), 0, node.Port{Proto: s.proto(), Backend: backendPort})
		sl.Endpoints = append(sl.Endpoints, node.Endpoint(node.Plus(firstBackend, 1024+i), lab.Node))
		return []*discovery.EndpointSlice{sl}
	}
	var out []*discovery.EndpointSlice
	for k, g := range s.groups {
		sl := node.Slice(s.serviceName(i), k, node.Port{Proto: s.proto(), Backend: backendPort})
		if s.weighted() {
			sl.Annotations = map[string]string{"lbproxy.io/weight": strconv.Itoa(int(g.weight))}
		}
		for b := range g.Count {
			if g.present {
				sl.Endpoints = append(sl.Endpoints, node.Endpoint(s.backend(i, g.first+b).Addr(), lab.Node))
			}
		}
		out = append(out, sl)
	}
	return out
}

// weighted tells whether any weight is not 1.
func (s *site) weighted() bool {
	return slices.ContainsFunc(s.groups, func(g groupState) bool { return *g.Weight != 1 || g.weight != 1 })
}

// backend is the address of one of Service i. Where traffic is paced all Services have the
// same.
func (s *site) backend(i, number int) netip.AddrPort {
	if s.sc.Live.Paced() {
		return netip.AddrPortFrom(node.Plus(firstBackend, number), backendPort)
	}
	return serviceBackend(i, len(groupsOf(s.sc)), number)
}

// pools is what a peer balances.
func (s *site) pools() []pool {
	var out []pool
	for i, a := range s.algorithms {
		p := pool{algorithm: a, udp: s.proto() == corev1.ProtocolUDP}
		for _, g := range s.groups {
			for b := range g.Count {
				if g.present && g.weight > 0 {
					p.servers = append(p.servers, poolServer{s.backend(i, g.first+b), g.weight})
				}
			}
		}
		out = append(out, p)
	}
	return out
}

// launch starts the proxy, if there is one, and returns when it has programmed everything.
func (s *site) launch(ctx context.Context, programs map[string]string) error {
	x := node.Proxy{Pods: podRange, MinSync: "1s"}
	switch s.name {
	case "direct":
		return nil
	case "nginx", "haproxy":
		s.peer = &peer{name: s.name, host: s.Lab.Host(peerPod), dir: s.Lab.Dir(), pools: s.pools()}
		return s.peer.start(ctx)
	case "lbproxy-ebpf":
		x.Path, x.Dataplane = programs["lbproxy"], "ebpf"
	case "lbproxy-iptables":
		x.Path, x.Dataplane, x.Backend = programs["lbproxy"], "iptables", node.NFT
	case "kube-proxy-iptables":
		x.Path, x.Mode, x.Backend, x.Aided = programs["kube-proxy"], "iptables", node.NFT, true
	case "kube-proxy-nftables":
		x.Path, x.Mode = programs["kube-proxy"], "nftables"
	}
	_, err := x.Launch(ctx, s.Node, startLimit)
	return err
}

// targets are what requests go to that are balanced by an algorithm.
func (s *site) targets(algorithm string) []netip.AddrPort {
	i := max(0, slices.Index(s.algorithms, algorithm))
	paced := s.sc.Live.Paced()
	switch {
	case s.isPeer():
		return []netip.AddrPort{netip.AddrPortFrom(peerAddr, uint16(peerPort+i))}
	case s.Direct():
		return s.directTargets()
	case s.sc.Live.Entry == "nodeport" && paced:
		return []netip.AddrPort{netip.AddrPortFrom(lab.NodeAddr4, uint16(nodePort+i))}
	case s.sc.Live.Entry == "nodeport":
		return []netip.AddrPort{netip.AddrPortFrom(lab.NodeAddr4, nodePort)}
	case paced:
		return []netip.AddrPort{netip.AddrPortFrom(node.Plus(firstVIP, i), frontendPort)}
	case s.sc.Live.Traffic != scenario.Connect: // one of them, on one connection
		return []netip.AddrPort{netip.AddrPortFrom(node.Plus(firstVIP, s.services/2), frontendPort)}
	}
	var all []netip.AddrPort
	for k := range s.services {
		all = append(all, netip.AddrPortFrom(node.Plus(firstVIP, k), frontendPort))
	}
	return all
}

// directTargets are backends.
func (s *site) directTargets() []netip.AddrPort {
	var all []netip.AddrPort
	number := len(groupsOf(s.sc))
	services := 1
	if s.sc.Live.Traffic == scenario.Connect && s.sc.Live.Entry == "clusterip" {
		services = s.services
	}
	for i := range services {
		for b := range number {
			all = append(all, s.backend(i, b))
		}
	}
	return all
}

// warm waits until the way through the proxy is open for each algorithm.
func (s *site) warm() error {
	if !s.sc.Live.Paced() {
		return nil
	}
	for _, a := range s.algorithms {
		targets := s.targets(a)
		err := s.client.Do(order{Verb: verbWarm, Scenario: s.sc, Targets: targets[:1]}, nil)
		if err != nil {
			return s.explain(err)
		}
	}
	return nil
}

// explain adds what the proxy last said to err.
func (s *site) explain(err error) error {
	if s.peer != nil {
		return fmt.Errorf("%w; %s says:\n%s", err, s.name, observe.ReadWord(s.peer.log()))
	}
	return s.Explain(err)
}
