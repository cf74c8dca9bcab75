// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"strings"
	"testing"
	"time"
)

func TestDefaultHealthIsComplete(t *testing.T) {
	d := DefaultHealth()
	if got := (Health{}).Or(d); got.Or(Health{}) != got || got.Probe != (Probe{Kind: ProbeNone, Timeout: time.Second}) {
		t.Errorf("got %+v", got)
	}
	for _, f := range HealthFields() {
		optional := strings.HasSuffix(f.Usage, "default: anything") || f.Name == "health-check-headers" || f.Name == "health-check-script" ||
			strings.Contains(f.Usage, "; default: the ")
		text := f.Text(&d)
		if (text == "") != optional {
			t.Errorf("%s: the default is %q", f.Name, text)
		}
		var h Health
		if err := f.Set(&h, text); err != nil || f.Text(&h) != text {
			t.Errorf("%s: %q is read as %q, %v", f.Name, text, f.Text(&h), err)
		}
		h = Health{}
		if f.Keep(&h, &d); f.Text(&h) != text {
			t.Errorf("%s: kept as %q, want %q", f.Name, f.Text(&h), text)
		}
	}
}

// TestHealthOr: each field for itself, and of the probe what its kind uses.
func TestHealthOr(t *testing.T) {
	d := DefaultHealth()
	d.Probe = Probe{
		Kind: ProbeHTTPS, Port: 1, Timeout: 2 * time.Second, Path: "/d", Host: "d", Headers: "D: d\n", Expect: "200", Body: "d", GRPCService: "d", Script: "d",
	}
	d.Verify = SwitchOn
	https := Probe{Kind: ProbeHTTPS, Port: 1, Timeout: 2 * time.Second, Path: "/d", Host: "d", Headers: "D: d\n", Expect: "200", Body: "d", Verify: true}
	with := func(f func(*Probe)) Probe {
		p := https
		f(&p)
		return p
	}
	for _, tc := range []struct {
		name string
		h    Health
		want Probe
	}{
		{"nothing said", Health{}, https},
		{"a path", Health{Probe: Probe{Path: "/s"}}, with(func(p *Probe) { p.Path = "/s" })},
		{"not verified", Health{Verify: SwitchOff}, with(func(p *Probe) { p.Verify = false })},
		{"HTTP", Health{Probe: Probe{Kind: ProbeHTTP}}, with(func(p *Probe) { p.Kind, p.Verify = ProbeHTTP, false })},
		{"gRPC", Health{Probe: Probe{Kind: ProbeGRPC}}, Probe{Kind: ProbeGRPC, Port: 1, Timeout: 2 * time.Second, Host: "d", GRPCService: "d"}},
		{"exec", Health{Probe: Probe{Kind: ProbeExec, Script: "s"}}, Probe{Kind: ProbeExec, Port: 1, Timeout: 2 * time.Second, Script: "s"}},
		{"TCP", Health{Probe: Probe{Kind: ProbeTCP, Timeout: time.Second, Path: "/s"}}, Probe{Kind: ProbeTCP, Port: 1, Timeout: time.Second}},
		{"none", Health{Probe: Probe{Kind: ProbeNone}}, Probe{Kind: ProbeNone, Timeout: 2 * time.Second}},
	} {
		if got := tc.h.Or(d).Probe; got != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.name, got, tc.want)
		}
	}
}
