// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/server"
)

// TestRulesAndWeightZero: backends for which there is no rule are shown, and one with
// connections is not leaving.
func TestRulesAndWeightZero(t *testing.T) {
	k := noState()
	k.view = func(config.Config) (view, error) {
		return &fakeView{services: []dataplane.ServiceView{{Name: "shop/web:http/TCP/IPv4", Kind: kindRules, Backends: []dataplane.BackendView{
			{Address: "10.244.1.1:80", State: "active", Pools: "cluster", Expected: 1},
			{Address: "10.244.1.2:80", State: stateLeaving, Pools: "none", Live: 3},
			{Address: "10.244.1.3:80", State: stateLeaving, Pools: "none", Live: 1},
		}}}}, nil
	}
	a, stdout, stderr := fakeApp(kernel{ebpf: noState(), iptables: k})
	a.askResting = func(context.Context, string) ([]server.Resting, error) {
		return []server.Resting{
			{Service: "shop/web:http/TCP/IPv4", Backend: "10.244.1.2:80", Pools: "both"},
			{Service: "shop/web:http/TCP/IPv4", Backend: "10.244.1.4:80", Pools: "cluster"},
			{Service: "shop/web:http/TCP/IPv4", Backend: "10.244.1.1:80", Pools: "local"},
			{Service: "shop/other/TCP/IPv4", Backend: "10.244.1.5:80", Pools: "cluster"},
		}, nil
	}
	if code := a.execute([]string{"get", "backends"}); code != exitOK || stderr.Len() > 0 {
		t.Errorf("code %d, stderr %q", code, stderr)
	}
	var got []string
	for line := range strings.Lines(stdout.String()) {
		f := strings.Fields(line)
		got = append(got, strings.Join([]string{f[5], f[6], f[7], f[8], f[13], f[14]}, " "))
	}
	want := []string{
		"BACKEND STATE POOLS LIVE WEIGHT EXPECTED", "10.244.1.1:80 active cluster 0 - 100.0%", "10.244.1.2:80 active both 3 0 0.0%",
		"10.244.1.3:80 leaving none 1 0 0.0%", "10.244.1.4:80 active cluster 0 0 0.0%",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	a.askResting = func(context.Context, string) ([]server.Resting, error) { return nil, server.ErrNoAgent }
	if code := a.execute([]string{"get", "backends"}); code != exitOK || !strings.Contains(stderr.String(), "backends of weight 0 are not known: no agent") {
		t.Errorf("without an agent: code %d, stderr %q", code, stderr)
	}
}
