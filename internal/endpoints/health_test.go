// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

func resolveHealth(t *testing.T, o Options, pairs ...string) (lb.Health, []Problem) {
	t.Helper()
	svcs, ps := Resolve(testService("web", annotated(pairs...)), nil, lb.Node{}, o)
	if len(svcs) != 1 {
		t.Fatalf("%d Services, want 1", len(svcs))
	}
	return svcs[0].Health, ps
}

// everyHealth says something of everything.
var everyHealth = []string{
	"health-check", "https", "health-check-port", "8443", "health-check-path", "/ready?x=1", "health-check-host", "shop.example",
	"health-check-headers", "X-A: 1\nX-B: two", "health-check-expect", "200-299, 304", "health-check-body", "all well",
	"health-check-verify", "true", "health-check-interval", "2s", "health-check-fast-interval", "100ms",
	"health-check-timeout", "1m", "health-check-rise", "1", "health-check-fall", "255", "health-check-grace", "0s",
	"health-passive", "false", "health-panic", "0", "health-drain", "true",
}

func wantEveryHealth() lb.Health {
	return lb.Health{
		Probe: lb.Probe{
			Kind: lb.ProbeHTTPS, Port: 8443, Timeout: time.Minute, Path: "/ready?x=1", Host: "shop.example",
			Headers: "X-A: 1\nX-B: two\n", Expect: "200-299,304", Body: "all well",
		},
		Verify: lb.SwitchOn, Interval: 2 * time.Second, FastInterval: 100 * time.Millisecond, Grace: lb.NoGrace, Rise: 1, Fall: 255,
		Passive: lb.SwitchOff, Panic: lb.NoPercent, Drain: lb.SwitchOn,
	}
}

func TestAnnotationsSetTheHealth(t *testing.T) {
	for _, tc := range []struct {
		pairs []string
		want  lb.Health
	}{
		{nil, lb.Health{}},
		{everyHealth, wantEveryHealth()},
		{[]string{"health-check", ""}, lb.Health{}},
		{[]string{"health-check", "none"}, lb.Health{Probe: lb.Probe{Kind: lb.ProbeNone}}},
		{[]string{"health-check", "grpc", "health-check-service", "shop.Cart"}, lb.Health{Probe: lb.Probe{Kind: lb.ProbeGRPC, GRPCService: "shop.Cart"}}},
		{[]string{"health-check", "exec", "health-check-script", "ask.sh"}, lb.Health{Probe: lb.Probe{Kind: lb.ProbeExec, Script: "ask.sh"}}},
		{[]string{"health-check", "tcp", "health-check-grace", "1h"}, lb.Health{Probe: lb.Probe{Kind: lb.ProbeTCP}, Grace: time.Hour}},
		{[]string{"health-max-ejected", "100%", "health-panic", "1"}, lb.Health{MaxEjected: 100, Panic: 1}},
		{[]string{"health-passive", "true", "health-drain", "false"}, lb.Health{Passive: lb.SwitchOn, Drain: lb.SwitchOff}},
	} {
		if got, ps := resolveHealth(t, testOptions(), tc.pairs...); got != tc.want || len(ps) > 0 {
			t.Errorf("%q: got %+v, problems %v; want %+v", tc.pairs, got, ps, tc.want)
		}
	}
}

// TestInvalidHealthKeepsWhatWorked makes one annotation after the other invalid.
func TestInvalidHealthKeepsWhatWorked(t *testing.T) {
	s, ev := newStore(t)
	put := func(pairs ...string) lb.Health {
		s.UpsertService(testService("web", annotated(pairs...)))
		s.Take()
		return s.entries[object("web")].published[0].Health
	}
	want := wantEveryHealth()
	if got := put(everyHealth...); got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	for i := 0; i < len(everyHealth); i += 2 {
		name := everyHealth[i]
		for _, bad := range badValues[name] {
			ev.take()
			broken := slices.Clone(everyHealth)
			broken[i+1] = bad
			if got := put(broken...); got != want {
				t.Errorf("%s %q: got %+v, want %+v", name, bad, got, want)
			}
			field := "web InvalidAnnotation metadata.annotations[lbproxy.io/" + name + "]: "
			if got := ev.take(); len(got) != 1 || !strings.HasPrefix(got[0], field) {
				t.Errorf("%s %q: events %q, want one of the annotation", name, bad, got)
			}
		}
		put(everyHealth...)
	}
	if got := put(); got != (lb.Health{}) {
		t.Errorf("without annotations: got %+v", got)
	}
}

func TestAChangeOfHealthIsPublished(t *testing.T) {
	s, _ := newStore(t)
	s.UpsertService(testService("web"))
	s.Take()
	s.UpsertService(testService("web", annotated("health-check", "tcp")))
	if cs, _ := s.Take(); len(cs) != 1 || cs[0].Services[0].Health.Probe.Kind != lb.ProbeTCP {
		t.Errorf("got %+v, want the Service with its probe", cs)
	}
}

func TestHealthWithoutEffectIsReported(t *testing.T) {
	udp := func(s *v1.Service) { s.Spec.Ports[0].Protocol = v1.ProtocolUDP }
	dns := func(s *v1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, v1.ServicePort{Name: "udp", Protocol: v1.ProtocolUDP, Port: 81})
	}
	tcp := func(*v1.Service) {}
	for _, tc := range []struct {
		ports   func(*v1.Service)
		cluster string // the kind of probe of the cluster's default
		pairs   []string
		want    []string
	}{
		{tcp, "none", []string{"health-check", "tcp", "health-check-path", "/x", "health-check-rise", "3"}, []string{"health-check-path with health-check tcp"}},
		{tcp, "http", []string{"health-check-path", "/x", "health-check-verify", "true"}, []string{"health-check-verify with health-check http"}},
		{tcp, "none", []string{"health-check-interval", "1s", "health-check-timeout", "2s", "health-panic", "50"}, []string{"health-check-interval with health-check none"}},
		{tcp, "none", []string{"health-passive", "false", "health-check-timeout", "2s", "health-max-ejected", "50", "health-drain", "true"}, []string{
			"health-check-timeout with health-check none and health-passive false",
			"health-drain with health-check none and health-passive false",
			"health-max-ejected with health-passive false"}},
		{tcp, "none", []string{"health-check", "http", "health-check-script", "x", "health-check-service", "x"}, []string{
			"health-check-script with health-check http", "health-check-service with health-check http"}},
		{udp, "none", []string{"health-check", "http", "health-check-path", "/x"}, []string{
			"health-check: the Service has no TCP port, and others are probed only by exec or at lbproxy.io/health-check-port"}},
		{udp, "none", []string{"health-check", "http", "health-check-path", "/x", "health-check-port", "8080"}, nil},
		{udp, "none", []string{"health-check", "exec", "health-check-script", "x"}, nil},
		{udp, "none", []string{"health-check", "none"}, nil},
		{udp, "none", []string{"health-passive", "true"}, []string{"health-passive without a TCP port"}},
		{udp, "none", []string{"health-passive", "false"}, nil},
		{udp, "tcp", nil, nil}, // the cluster's default is nobody's mistake
		{dns, "none", []string{"health-check", "tcp"}, nil},
	} {
		o := testOptions()
		o.DefaultHealth = lb.DefaultHealth()
		if err := lb.HealthFields()[0].Set(&o.DefaultHealth, tc.cluster); err != nil {
			t.Fatal(err)
		}
		_, ps := Resolve(testService("web", tc.ports, annotated(tc.pairs...)), nil, lb.Node{}, o)
		var got []string
		for _, p := range ps {
			if p.Reason != ReasonNoEffect {
				t.Errorf("%q: problem %v", tc.pairs, p)
			}
			name := strings.TrimSuffix(strings.TrimPrefix(p.Field, "metadata.annotations[lbproxy.io/"), "]")
			got = append(got, name+strings.TrimPrefix(p.Err.Error(), "has no effect"))
		}
		if slices.Sort(got); !slices.Equal(got, tc.want) {
			t.Errorf("default %s, %q: without effect %q, want %q", tc.cluster, tc.pairs, got, tc.want)
		}
	}
}

func TestExecNeedsAScript(t *testing.T) {
	s, ev := newStore(t)
	for range 2 {
		s.UpsertService(testService("web", annotated("health-check", "exec", "health-check-rise", "7")))
		s.Take()
		if got := s.entries[object("web")].published[0].Health; got != (lb.Health{Rise: 7}) {
			t.Errorf("got %+v, want no probe", got)
		}
	}
	want := []string{"web InvalidAnnotation metadata.annotations[lbproxy.io/health-check]: exec needs lbproxy.io/health-check-script"}
	if got := ev.take(); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	o := testOptions()
	o.DefaultHealth = lb.DefaultHealth()
	o.DefaultHealth.Probe.Script = "all.sh"
	if got, ps := resolveHealth(t, o, "health-check", "exec"); got.Probe.Kind != lb.ProbeExec || len(ps) > 0 {
		t.Errorf("with the cluster's script: %+v, problems %v", got, ps)
	}
}

// TestExecWithoutAScriptKeepsTheProbe: what was probed until now still is.
func TestExecWithoutAScriptKeepsTheProbe(t *testing.T) {
	for _, pairs := range [][]string{
		{"health-check", "http", "health-check-path", "/ready"},
		{"health-check", "exec", "health-check-script", "check-web"},
	} {
		s, _ := newStore(t)
		put := func(pairs ...string) lb.Probe {
			s.UpsertService(testService("web", annotated(pairs...)))
			s.Take()
			return s.entries[object("web")].published[0].Health.Probe
		}
		want := put(pairs...)
		for _, bad := range [][]string{
			{"health-check", "exec"},
			{"health-check", "exec", "health-check-script", "../sh"},
		} {
			if got := put(bad...); got != want {
				t.Errorf("%q after %q: got %+v, want %+v", bad, pairs, got, want)
			}
		}
	}
}

func FuzzHealthAnnotations(f *testing.F) {
	for name, values := range badValues {
		for _, v := range values {
			f.Add(name, v)
		}
	}
	for i := 0; i < len(everyHealth); i += 2 {
		f.Add(everyHealth[i], everyHealth[i+1])
	}
	o := testOptions()
	f.Fuzz(func(t *testing.T, name, value string) {
		svc := testService("web", annotated(name, value))
		svcs, ps := Resolve(svc, nil, lb.Node{}, o)
		for _, p := range ps {
			if text := p.Message(); len(text) > 400+len(name) {
				t.Errorf("%q: %d bytes: %s", name, len(text), text)
			}
		}
		said := svcs[0].Health
		for _, field := range lb.HealthFields() { // what is shown says the same
			if text := field.Text(&said); text != "" {
				var again lb.Health
				if err := field.Set(&again, text); err != nil || field.Text(&again) != text {
					t.Errorf("%s %q is shown as %q, which is read as %q, %v", field.Name, value, text, field.Text(&again), err)
				}
			}
		}
		h := said.Or(lb.DefaultHealth())
		bad := h.Interval < lb.MinProbeInterval || h.Interval > lb.MaxProbeInterval || h.FastInterval < lb.MinProbeInterval || h.FastInterval > lb.MaxProbeInterval ||
			h.Probe.Timeout < lb.MinProbeTimeout || h.Probe.Timeout > lb.MaxProbeTimeout || h.Grace == 0 || h.Grace > lb.MaxGrace || h.Rise == 0 || h.Fall == 0 ||
			h.MaxEjected == 0 || h.MaxEjected > 100 || h.Panic == 0 || h.Panic > 100 || h.Passive == 0 || h.Drain == 0 || h.Verify == 0 || h.Probe.Kind == lb.ProbeDefault
		if bad {
			t.Errorf("%q %q: not complete, or out of bounds: %+v", name, value, h)
		}
		if h.Probe.Kind != lb.ProbeNone {
			if err := h.Probe.Check(); err != nil {
				t.Errorf("%q %q: a probe that cannot be made: %v", name, value, err)
			}
		}
	})
}
