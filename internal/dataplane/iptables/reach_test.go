// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestBriefRules: the few rules of the first step of a repair lead every packet to a
// backend that it could have got before, and mark the same ones.
func TestBriefRules(t *testing.T) {
	pods := netip.MustParsePrefix("10.244.0.0/16")
	d := &Dataplane{services: map[lb.ServiceName]*service{}, members: map[setMember]int{}}
	fam := &family{facts: facts{pods: []string{"-s " + pods.String()}}}
	fam.roots = roots{
		family: lb.IPv4, mark: 1 << 14, local: lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: []netip.Prefix{pods}},
		vips: hashName("T-", "vips"), ports: hashName("T-", "ports"), hairpins: hashName("T-", "hairpins"),
	}
	fam.trees()
	plain := at(lb.ClusterIP, "10.96.0.1:80", lb.TCP)
	local := at(lb.ClusterIP, "10.96.0.4:80", lb.TCP)
	local.Inside, local.Outside = lb.ScopeLocal, lb.ScopeLocal
	weighted := endpoints(3, 1, lb.IPv4)
	weighted[0].Weight, weighted[2].Weight = 0, 0
	for name, s := range map[string]spec{
		"plain":    {backends: endpoints(3, 1, lb.IPv4), frontends: []lb.Frontend{plain}},
		"weighted": {backends: weighted, frontends: []lb.Frontend{at(lb.ClusterIP, "10.96.0.2:80", lb.TCP)}},
		"sticky":   {backends: endpoints(3, 1, lb.IPv4), frontends: []lb.Frontend{at(lb.ClusterIP, "10.96.0.3:80", lb.TCP)}, terms: lb.Terms{Affinity: time.Hour}},
		"local":    {backends: endpoints(3, 1, lb.IPv4), frontends: []lb.Frontend{local}},
		"empty":    {frontends: []lb.Frontend{at(lb.ClusterIP, "10.96.0.5:80", lb.TCP)}},
		"balancer": {backends: endpoints(3, 1, lb.IPv4), frontends: []lb.Frontend{at(lb.ClusterIP, "10.96.0.6:80", lb.TCP), at(lb.LoadBalancer, "192.0.2.1:80", lb.TCP)}},
	} {
		svc := s.service(t)
		svc.Name.Name = name
		d.services[svc.Name] = &service{Service: svc, out: render(svc, &fam.facts, [2][]float64{})}
		fam.enter(&d.services[svc.Name].out, map[spot]string{}, map[spot]string{}, map[spot]string{})
		fam.vips.update(d.services[svc.Name].out.vips)
	}
	random := rand.New(rand.NewPCG(1, 2))
	c, ok := d.brief(fam, random.Uint32)
	if !ok {
		t.Fatal("it cannot be done")
	}
	chains := c[natTable].put
	for _, svc := range d.services {
		checkBrief(t, svc.Service, chains, random)
	}
}

// checkBrief sends first packets from a pod and from outside to all frontends of svc.
func checkBrief(t *testing.T, svc *dataplane.Service, chains []chain, random *rand.Rand) {
	t.Helper()
	tr, err := newTracer(chains)
	if err != nil {
		t.Fatal(err)
	}
	tr.random = random.Uint32
	tr.inSet = func(_ string, p *packet, dirs string) bool { return dirs == "dst" && p.dst.Addr().As4()[0] == 10 } // of cluster IPs
	for _, fe := range svc.Frontends {
		might := map[netip.AddrPort]bool{}
		for _, be := range svc.Pool(fe.Inside).Backends {
			might[be.Addr] = be.Weight > 0
		}
		for src, outside := range map[string]bool{"10.244.0.9:4000": false, "192.0.2.9:4000": true} {
			v := tr.walk(servicesChain, &packet{family: lb.IPv4, proto: lb.TCP, src: netip.MustParseAddrPort(src), dst: fe.Addr})
			if len(might) == 0 {
				if v.target != "" {
					t.Errorf("%s at %s: %s to %s, want nothing", svc.Name, fe.Addr, v.target, v.to)
				}
				continue
			}
			marked := outside || fe.Masquerade == lb.MasqueradeAlways
			if v.target != "DNAT" || !might[v.to] || (v.mark != 0) != marked {
				t.Errorf("%s at %s from %s: %s to %s, mark %#x; want one of %v, marked: %t", svc.Name, fe.Addr, src, v.target, v.to, v.mark, might, marked)
			}
		}
	}
}
