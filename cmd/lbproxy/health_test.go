// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/server"
)

// fakeProber finds every backend refused.
type fakeProber struct{}

func newFakeProber(health.ProberOptions) health.Prober { return fakeProber{} }

func (fakeProber) Start(_ health.Target, done func(health.Result)) {
	done(health.Result{Err: errors.New("tcp: refused")})
}

func (fakeProber) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// witnessPlane is a fakePlane that sees symptoms.
type witnessPlane struct {
	fakePlane
	symptoms chan lb.Symptom
}

func (p *witnessPlane) Symptoms() <-chan lb.Symptom { return p.symptoms }

func (p *witnessPlane) Suspect(lb.ServiceName, netip.AddrPort, time.Time, time.Duration) error {
	return nil
}

// TestHealthIsWired: a symptom that a probe confirms makes the agent give the backend
// weight 0 in the dataplane, and Services are watched by the cluster's defaults.
func TestHealthIsWired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plane := &witnessPlane{fakePlane{services: map[string]*dataplane.Service{}}, make(chan lb.Symptom)}
		n := testNode(t, plane)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { _ = n.agent.Run(ctx) })
		all.Go(func() { _ = n.monitor.Run(ctx) })
		announce(n, "10.244.1.9", "10.244.1.10")
		served := func() *dataplane.Service {
			synctest.Wait()
			plane.mu.Lock()
			defer plane.mu.Unlock()
			return plane.services["shop/web:http/TCP/IPv4"]
		}
		svc := served()
		if svc == nil || len(svc.Cluster.Backends) != 2 || svc.Terms.Suspect == 0 {
			t.Fatalf("served: %+v", svc)
		}
		plane.symptoms <- lb.Symptom{Service: svc.Name, Backend: netip.MustParseAddrPort("10.244.1.9:8080"), Kind: lb.Refused}
		synctest.Wait()
		<-time.After(time.Second) // the agent's pace
		got := ""
		for _, be := range served().Cluster.Backends {
			got += fmt.Sprint(be.Addr.Addr(), " ", be.Weight, " ")
		}
		if want := "10.244.1.9 0 10.244.1.10 100 "; got != want {
			t.Errorf("weights %s, want %s", got, want)
		}
		cancel()
		all.Wait()
	})
}

// TestHealthOptions: what the configuration says of health arrives.
func TestHealthOptions(t *testing.T) {
	cfg := config.Default()
	cfg.Health.Interval = 7 * time.Second
	cfg.Scripts = config.ScriptsConfig{Dir: "/scripts", User: config.User{UID: 5, GID: 6}}
	if got := healthDefaults(cfg); got != cfg.Health {
		t.Errorf("defaults %+v, want %+v", got, cfg.Health)
	}
	o := proberOptions(cfg)
	if o.ScriptDir != "/scripts" || o.ScriptUser != 5 || o.ScriptGroup != 6 || o.UserAgent != "lbproxy/"+version {
		t.Errorf("options of the prober: %+v", o)
	}
	stats := statsOf(health.Stats{
		Backends:    map[health.State]int{health.Healthy: 2},
		Transitions: map[[2]health.State]uint64{{health.Suspect, health.Ejected}: 3},
		Ejections:   map[string]uint64{"reset": 4},
		Ignored:     5,
	})
	want := server.HealthStats{
		Backends:    map[string]int{"healthy": 2},
		Transitions: map[[2]string]uint64{{"suspect", "ejected"}: 3},
		Ejections:   map[string]uint64{"reset": 4},
		Ignored:     5,
	}
	if !reflect.DeepEqual(stats, want) {
		t.Errorf("stats %+v, want %+v", stats, want)
	}
}

// TestCheckTellsOfScripts: a directory that exec probes cannot use is no reason not to run.
func TestCheckTellsOfScripts(t *testing.T) {
	a, _, _ := fakeApp(exampleKernel())
	cfg := config.Default()
	cfg.Manifests = t.TempDir()
	cfg.HealthzBindAddress, cfg.MetricsBindAddress = netip.AddrPort{}, netip.AddrPort{}
	scripts := func() string {
		for _, f := range a.checkAgent(t.Context(), cfg) {
			if f.Name == "health-script-dir" {
				return f.Level + ": " + f.Detail
			}
		}
		return ""
	}
	if got := scripts(); got != "" {
		t.Errorf("without a directory: %s", got)
	}
	cfg.Scripts.Dir = cfg.Manifests + "/missing"
	if got := scripts(); !strings.HasPrefix(got, levelWarn+": probes of kind exec are refused: directory ") {
		t.Errorf("a directory that is not there: %q", got)
	}
}

// TestServed: counters are read at most every half a second, and what is not counted is
// not known.
func TestServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		name, reads := lb.ServiceName{Proto: lb.TCP}, 0
		counted, other := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")
		var fails error
		s := newServed(func() (dataplane.Stats, error) {
			reads++
			return dataplane.Stats{Backends: []dataplane.BackendStats{
				{Service: name, Backend: counted, Counted: true, Answered: uint64(10 * reads), Failed: uint64(reads)},
				{Service: name, Backend: other, Live: 7},
			}}, fails
		})
		check := func(b netip.AddrPort, want string) {
			t.Helper()
			o, ok := s.of(name, b)
			if got := fmt.Sprint(o.Answered, o.Failed, ok); got != want {
				t.Errorf("%s: %s, want %s", b, got, want)
			}
			if age := time.Since(o.At); ok && age >= servedFor {
				t.Errorf("%s: read %v ago", b, age)
			}
		}
		check(counted, "10 1 true")
		<-time.After(servedFor - 1)
		check(counted, "10 1 true")
		check(other, "0 0 false")
		<-time.After(1)
		check(counted, "20 2 true")
		<-time.After(servedFor)
		fails = errors.New("closed")
		check(counted, "0 0 false")
	})
}

// TestServedByPredecessors: what is left of a removed Service is added to what its successor
// of the same name has, whichever is told first.
func TestServedByPredecessors(t *testing.T) {
	name, backend := lb.ServiceName{Proto: lb.TCP}, netip.MustParseAddrPort("10.0.0.1:80")
	stats := []dataplane.BackendStats{
		{Service: name, Backend: backend, Counted: true, Answered: 5, Failed: 2},
		{Service: name, Backend: backend, Counted: true, Answered: 70, Failed: 10, Leaving: true},
	}
	for range stats {
		s := newServed(func() (dataplane.Stats, error) { return dataplane.Stats{Backends: stats}, nil })
		o, ok := s.of(name, backend)
		if !ok || o.Answered != 75 || o.Failed != 12 || o.At.IsZero() {
			t.Errorf("%+v, %t; want 75 answered, 12 failed", o, ok)
		}
		slices.Reverse(stats)
	}
}
