// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

const thisNode, thisZone = "node-a", "zone-a"

func ptr[T any](v T) *T { return &v }

// testService has the cluster IP 10.96.0.1 and port http 80, changed by edit.
func testService(name string, edit ...func(*v1.Service)) *v1.Service {
	s := &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: v1.ServiceSpec{
			Type:       v1.ServiceTypeClusterIP,
			ClusterIP:  "10.96.0.1",
			ClusterIPs: []string{"10.96.0.1"},
			IPFamilies: []v1.IPFamily{v1.IPv4Protocol},
			Ports:      []v1.ServicePort{{Name: "http", Protocol: v1.ProtocolTCP, Port: 80}},
		},
	}
	for _, f := range edit {
		f(s)
	}
	return s
}

func clusterIP(ip string) func(*v1.Service) {
	return func(s *v1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = ip, []string{ip} }
}

func dualStack(s *v1.Service) {
	s.Spec.ClusterIPs = []string{"10.96.0.1", "fd00::1"}
	s.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol}
}

func nodePort(n int32) func(*v1.Service) {
	return func(s *v1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = v1.ServiceTypeNodePort, n }
}

func externalLocal(s *v1.Service) {
	s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyLocal
}

func internalLocal(s *v1.Service) {
	s.Spec.InternalTrafficPolicy = ptr(v1.ServiceInternalTrafficPolicyLocal)
}

func balancer(ips ...string) func(*v1.Service) {
	return func(s *v1.Service) {
		s.Spec.Type = v1.ServiceTypeLoadBalancer
		for _, ip := range ips {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, v1.LoadBalancerIngress{IP: ip})
		}
	}
}

// testSlice has port http 8080 and the endpoints that specs say: an address, then
// words: remote, notready, serving, terminating, here=NODE, zone=ZONE.
func testSlice(service, name string, specs ...string) *discovery.EndpointSlice {
	s := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, Labels: map[string]string{discovery.LabelServiceName: service},
		},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: ptr("http"), Protocol: ptr(v1.ProtocolTCP), Port: ptr(int32(8080))}},
	}
	for _, spec := range specs {
		words := strings.Fields(spec)
		ep := discovery.Endpoint{Addresses: words[:1], NodeName: ptr(thisNode)}
		for _, w := range words[1:] {
			key, value, _ := strings.Cut(w, "=")
			switch key {
			case "remote":
				ep.NodeName = ptr("node-b")
			case "notready":
				ep.Conditions.Ready, ep.Conditions.Serving = ptr(false), ptr(false)
			case "serving":
				ep.Conditions.Serving = ptr(true)
			case "terminating":
				ep.Conditions.Ready, ep.Conditions.Terminating = ptr(false), ptr(true)
			case "here", "zone":
				if ep.Hints == nil {
					ep.Hints = &discovery.EndpointHints{}
				}
				if key == "here" {
					ep.Hints.ForNodes = append(ep.Hints.ForNodes, discovery.ForNode{Name: value})
				} else {
					ep.Hints.ForZones = append(ep.Hints.ForZones, discovery.ForZone{Name: value})
				}
			default:
				panic("unknown word " + w)
			}
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s
}

func testOptions() Options {
	return Options{NodeName: thisNode, CheckAlgorithm: func(name string) error {
		if !slices.Contains([]string{"random", "hash", "least-time"}, name) {
			return fmt.Errorf("unknown algorithm %q", name)
		}
		return nil
	}}
}

// show writes a pool as "1 2!" (last byte of each address, ! if local), with the
// verdict in front when it is empty.
func show(p lb.Pool) string {
	if len(p.Backends) == 0 {
		return p.Empty.String()
	}
	var words []string
	for _, b := range p.Backends {
		bytes := b.Addr.Addr().AsSlice()
		w := fmt.Sprint(bytes[len(bytes)-1])
		if b.Local {
			w += "!"
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

func showFrontend(f lb.Frontend) string {
	scope := map[lb.Scope]string{lb.ScopeCluster: "cluster", lb.ScopeLocal: "local"}
	masq := map[lb.Masquerade]string{lb.MasqueradeNever: "never", lb.MasqueradeOffCluster: "off", lb.MasqueradeAlways: "always"}
	return fmt.Sprintf("%s %s %s/%s %s", f.Type, f.FrontendKey, scope[f.Inside], scope[f.Outside], masq[f.Masquerade])
}

func showFrontends(svcs []*lb.Service) (out []string) {
	for _, s := range svcs {
		for _, f := range s.Frontends {
			out = append(out, showFrontend(f))
		}
	}
	return out
}

func reasons(ps []Problem) (out []string) {
	for _, p := range ps {
		out = append(out, p.Reason)
	}
	return out
}

// events is a Reporter that remembers.
type events struct {
	mu   sync.Mutex
	seen []string
}

func (e *events) ServiceEvent(obj lb.Object, _, reason, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = append(e.seen, obj.Name+" "+reason+" "+message)
}

// take returns what was seen since the last call, sorted.
func (e *events) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	seen := e.seen
	e.seen = nil
	slices.Sort(seen)
	return seen
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func logger(h slog.Handler) *slog.Logger { return slog.New(h) }

// logged is a log whose records can be waited for.
type logged struct {
	slog.Handler
	records chan string
}

func newLogged() *logged {
	return &logged{slog.DiscardHandler, make(chan string, 1000)}
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }

func (l *logged) Handle(_ context.Context, r slog.Record) error {
	text := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		return true
	})
	l.records <- text
	return nil
}

// await returns the first record that contains all words.
func (l *logged) await(t *testing.T, words ...string) string {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	var others []string
	for {
		select {
		case text := <-l.records:
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) }) {
				return text
			}
			others = append(others, text)
		case <-deadline:
			t.Fatalf("no log record has %q; there were:\n%s", words, strings.Join(others, "\n"))
		}
	}
}

// newStore returns a synced, empty Store that has been taken from once.
func newStore(t *testing.T) (*Store, *events) {
	t.Helper()
	ev := &events{}
	s := New(testOptions(), discard(), ev)
	for _, src := range KubernetesSources {
		s.MarkSynced(src)
	}
	if cs, full := s.Take(); len(cs) != 0 || !full {
		t.Fatalf("first Take of an empty store: %d changes, full %v; want none, true", len(cs), full)
	}
	return s, ev
}

// view is what a consumer of Take knows.
type view map[lb.Object][]*lb.Service

func (v view) take(s *Store) []string {
	cs, full := s.Take()
	if full {
		clear(v)
	}
	var names []string
	for _, c := range cs {
		names = append(names, c.Object.Name)
		if v[c.Object] = c.Services; len(c.Services) == 0 {
			delete(v, c.Object)
		}
	}
	return names
}

// lines writes everything in v, one frontend a line.
func (v view) lines() []string {
	var out []string
	for obj, svcs := range v {
		for _, s := range svcs {
			for _, f := range s.Frontends {
				out = append(out, fmt.Sprintf("%s %s -> %s", obj.Name, f.FrontendKey, show(*s.Pool(f.Outside))))
			}
		}
	}
	slices.Sort(out)
	return out
}

// await takes until lines equal want.
func (v view) await(t *testing.T, s *Store, want ...string) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		v.take(s)
		if slices.Equal(v.lines(), want) {
			return
		}
		select {
		case <-s.Dirty():
		case <-deadline:
			t.Fatalf("got  %q\nwant %q", v.lines(), want)
		}
	}
}

// run runs f in the background until the test ends.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
}
