// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/launch"
	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	backendCount = 8
	backendPort  = 8080
	healLimit    = 2 * time.Minute // until a backend that came back has connections again
)

var (
	vip   = netip.MustParseAddrPort("10.96.1.1:80")
	probe = "lbproxy.io/health-check: tcp"
	blind = "lbproxy.io/health-passive: 'false'"
)

// arm is a way to learn that a backend fails.
type arm struct {
	name  string
	flags []string // of lbproxy
	says  string   // an annotation of the Service; empty: the defaults hold
	blind bool     // only the kubelet sees faults
}

var arms = []arm{
	{"ebpf", []string{"--dataplane=ebpf"}, "", false},
	{"iptables", iptables, "", false},
	{"iptables probed", iptables, probe, false},
	{"ebpf kubelet", []string{"--dataplane=ebpf"}, blind, true},
	{"iptables kubelet", iptables, blind, true},
}

// iptables leaves alone what is the machine's, not the namespace's.
var iptables = []string{
	"--dataplane=iptables", "--iptables-backend=nft",
	"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0s",
	"--conntrack-tcp-timeout-close-wait=0s",
}

// site is a lab with nodes that run lbproxy, two clients on each, and backends on another
// machine. The socket hooks see one of the clients, the other one's packets are translated.
type site struct {
	lab     *lab.Lab
	arm     arm
	program string
	dir     string // of manifests
	nodes   []string
	agents  []*launch.Agent // by node; nil: it does not run
	away    map[string]bool
}

func backend(i int) string { return fmt.Sprintf("backend%d", i+1) }

// clientsOf are the hosts on node i that dial.
func clientsOf(i int) []string { return []string{fmt.Sprintf("sock%d", i), fmt.Sprintf("pack%d", i)} }

func (b *bench) newSite(ctx context.Context, a arm) (_ *site, err error) {
	s := &site{arm: a, program: b.program, nodes: []string{lab.Node}, away: map[string]bool{}}
	var pods []lab.PodSpec
	for i := range backendCount {
		pods = append(pods, lab.PodSpec{Name: backend(i), Node: lab.Node2})
	}
	for i := range b.nodes {
		if i > 0 {
			s.nodes = append(s.nodes, lab.MoreNode(i-1))
		}
		for k, name := range clientsOf(i) {
			pods = append(pods, lab.PodSpec{Name: name, Node: s.nodes[i], Unhooked: k == 1})
		}
	}
	if s.lab, err = lab.New(lab.Options{Name: "failover", Nodes: b.nodes - 1, Pods: pods}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	s.dir = filepath.Join(s.lab.Dir(), "manifests")
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	for i := range backendCount {
		if err := s.serve(ctx, backend(i)); err != nil {
			return nil, err
		}
	}
	if err := s.write(); err != nil {
		return nil, err
	}
	s.agents = make([]*launch.Agent, b.nodes)
	return s, s.start(ctx)
}

func (s *site) close() error {
	s.kill()
	return s.lab.Close()
}

func (s *site) serve(ctx context.Context, backend string) error {
	return s.lab.Host(backend).Serve(ctx, lab.TCP, lab.AnyAddr(backendPort))
}

// start starts lbproxy on every node and waits until all are ready.
func (s *site) start(ctx context.Context) error {
	errs := make([]error, len(s.nodes))
	var wg sync.WaitGroup
	for i, node := range s.nodes {
		wg.Go(func() {
			a, err := launch.Start(ctx, s.lab, node, s.program, s.dir, s.arm.flags...)
			if err == nil {
				s.agents[i] = a
				_, err = a.Await(ctx)
				err = a.Explain(err)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// kill ends all of them without warning.
func (s *site) kill() {
	for i, a := range s.agents {
		if a != nil {
			a.Kill()
		}
		s.agents[i] = nil
	}
}

// write writes the Service and its slice, in which those that are away are not ready.
func (s *site) write() error {
	var list []string
	for i := range backendCount {
		name := backend(i)
		list = append(list, fmt.Sprintf("{addresses: [%s], nodeName: %s, conditions: {ready: %t, serving: %[3]t}}",
			s.lab.Host(name).Addr4, lab.Node2, !s.away[name]))
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: bench
  annotations:
    lbproxy.io/algorithm: round-robin
    %s
spec:
  clusterIP: %s
  ports: [{name: http, port: %d, targetPort: %d}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: bench, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: %[4]d}]
endpoints: [%[5]s]
`, s.arm.says, vip.Addr(), vip.Port(), backendPort, strings.Join(list, ", "))
	next := filepath.Join(s.lab.Dir(), "next.yaml")
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		return fmt.Errorf("manifests: %w", err)
	}
	return os.Rename(next, filepath.Join(s.dir, "web.yaml"))
}

// ready makes a backend ready or not, as the kubelet and the control plane do.
func (s *site) ready(backend string, is bool) error {
	s.away[backend] = !is
	return s.write()
}

// heals waits until every client gets answers of a backend again. It returns how long
// that took.
func (s *site) heals(ctx context.Context, backend string) (time.Duration, error) {
	begin := time.Now()
	for i := range s.nodes {
		for _, name := range clientsOf(i) {
			for !s.reaches(ctx, name, backend) {
				if time.Since(begin) > healLimit {
					return 0, fmt.Errorf("%s has no connection from %s %s after it came back", backend, name, healLimit)
				}
				if err := sleep(ctx, 20*time.Millisecond); err != nil {
					return 0, err
				}
			}
		}
	}
	return time.Since(begin), nil
}

// reaches tells whether one of a turn's connections goes to a backend.
func (s *site) reaches(ctx context.Context, client, backend string) bool {
	results, err := s.lab.Host(client).DialMany(ctx, lab.Request{Proto: lab.TCP, To: vip, Timeout: patience}, backendCount)
	return err == nil && slices.ContainsFunc(results, func(r lab.Result) bool { return r.Backend == backend })
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
