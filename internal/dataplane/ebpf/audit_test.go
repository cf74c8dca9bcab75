// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// auditRig serves Services of every sort at 10.96.0.1 and 172.32.0.1.
func auditRig(t *testing.T) (*rig, []*dataplane.Service) {
	r := newRig(t, nil)
	pods := r.pods(lb.IPv4, "backend1", "backend2")
	weighted := slices.Clone(pods)
	weighted[0].Weight = 3
	svcs := []*dataplane.Service{
		r.svc("plain", lb.IPv4, lb.TCP, "round-robin", pods, frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:80", lb.MasqueradeOffCluster)),
		r.svc("weights", lb.IPv4, lb.TCP, "hash", weighted, frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:81", lb.MasqueradeOffCluster)),
		ranged(sticky(r.svc("terms", lb.IPv4, lb.TCP, "least-connection", pods,
			frontend(lb.LoadBalancer, lb.TCP, "172.32.0.1:80", lb.MasqueradeAlways)), time.Hour), "10.244.0.0/16", "172.30.0.0/24"),
		r.svc("empty", lb.IPv4, lb.TCP, "random", nil, frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:82", lb.MasqueradeOffCluster)),
	}
	r.sync(dataplane.Delta{Full: true, Put: svcs})
	return r, svcs
}

// audit returns what is found at each Service, and in whole passes over what may belong
// to none.
func (r *rig) audit(svcs []*dataplane.Service) (found []string) {
	r.t.Helper()
	for range 6 { // two passes over three tables of less than auditEntries
		more, err := r.dp.Audit(r.t.Context(), svcs)
		if err != nil {
			r.t.Fatal(err)
		}
		found = append(found, more...)
		svcs = nil
	}
	return found
}

// corruptions are done to the kernel's tables behind the agent's back.
var corruptions = map[string]func(t *testing.T, d *Dataplane){
	"a frontend is missing": func(t *testing.T, d *Dataplane) {
		must(t, d.maps.frontends().Delete(keyAt("10.96.0.1:80")))
	},
	"a frontend leads to another Service": func(t *testing.T, d *Dataplane) {
		v := d.frontends[keyAt("10.96.0.1:80")]
		v.Service++
		must(t, d.maps.frontends().Put(keyAt("10.96.0.1:80"), v))
	},
	"a cluster IP's other ports are missing": func(t *testing.T, d *Dataplane) {
		must(t, d.maps.frontends().Delete(unknownKey(addrOf(netip.MustParseAddr("10.96.0.1")))))
	},
	"a frontend of nobody": func(t *testing.T, d *Dataplane) {
		v := d.frontends[keyAt("10.96.0.1:80")]
		v.Check = checkOf(keyAt("10.96.0.9:9"))
		must(t, d.maps.frontends().Put(keyAt("10.96.0.9:9"), v))
	},
	"a pool word": func(t *testing.T, d *Dataplane) { d.maps.services[d.id(t, "plain")].Pool[0]++ },
	"a pool word is 0": func(t *testing.T, d *Dataplane) {
		d.maps.services[d.id(t, "plain")].Pool[0] = 0
	},
	"an empty Service's pool word": func(t *testing.T, d *Dataplane) {
		d.maps.services[d.id(t, "empty")].Pool[0] = d.maps.services[d.id(t, "plain")].Pool[0]
	},
	"a table's head":  func(t *testing.T, d *Dataplane) { d.region(t, "plain")[headHow].Alias ^= 7 },
	"a table's entry": func(t *testing.T, d *Dataplane) { d.region(t, "plain")[headSlots].Backend += 1000 },
	"a table's order": func(t *testing.T, d *Dataplane) {
		d.region(t, "weights")[headSlots+2] = lbSlot{Backend: 1<<32 - 1, Alias: 1<<32 - 1}
	},
	"a backend's address": func(t *testing.T, d *Dataplane) { d.backend(t, "plain").Addr.W[3] ^= 0xff },
	"a backend's port":    func(t *testing.T, d *Dataplane) { d.backend(t, "plain").Port++ },
	"a backend's state": func(t *testing.T, d *Dataplane) {
		d.backend(t, "plain").State = uint8(lbBackendStateBACKEND_FREE)
	},
	"a backend's Service": func(t *testing.T, d *Dataplane) { d.backend(t, "terms").Service++ },
	"an affinity":         func(t *testing.T, d *Dataplane) { d.maps.services[d.id(t, "terms")].Affinity = 1 },
	"a backend's pools":   func(t *testing.T, d *Dataplane) { d.backend(t, "terms").Pools = 0 },
	"a source range is missing": func(t *testing.T, d *Dataplane) {
		must(t, d.maps.ranges().Delete(sourceRangeOf(d.id(t, "terms"), netip.MustParsePrefix("172.30.0.0/24"))))
	},
	"a source range is covered by another": func(t *testing.T, d *Dataplane) {
		must(t, d.maps.ranges().Delete(sourceRangeOf(d.id(t, "terms"), netip.MustParsePrefix("172.30.0.0/24"))))
		all := sourceRangeOf(d.id(t, "terms"), netip.MustParsePrefix("0.0.0.0/0"))
		must(t, d.maps.ranges().Put(all, all.Len))
	},
	"a name is missing": func(t *testing.T, d *Dataplane) { must(t, d.maps.names().Delete(d.id(t, "plain"))) },
	"a name of nobody": func(t *testing.T, d *Dataplane) {
		must(t, d.maps.names().Put(uint32(999), serviceName{'x'}))
	},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // another corruption has deleted it
		t.Fatal(err)
	}
}

func keyAt(at string) lbFrontendKey {
	return frontendKeyOf(lb.FrontendKey{Addr: netip.MustParseAddrPort(at), Proto: lb.TCP})
}

func (d *Dataplane) named(t *testing.T, name string) *service {
	t.Helper()
	for n, svc := range d.services {
		if n.Name == name {
			return svc
		}
	}
	t.Fatalf("no Service %s", name)
	return nil
}

func (d *Dataplane) id(t *testing.T, name string) uint32 { return d.named(t, name).id }

func (d *Dataplane) region(t *testing.T, name string) []lbSlot {
	return d.content(d.named(t, name), lb.ScopeCluster)
}

func (d *Dataplane) backend(t *testing.T, name string) *lbBackend {
	return &d.maps.backends[d.named(t, name).ids[0][0]]
}

// TestAudit corrupts each table: the audit says so, repairs it, and finds nothing when
// it looks again. What is as it should be costs no write.
func TestAudit(t *testing.T) {
	r, svcs := auditRig(t)
	quiet := func(when string) {
		t.Helper()
		before := r.dp.Writes()
		if found := r.audit(svcs); len(found) > 0 {
			t.Errorf("%s: found %q", when, found)
		}
		if n := r.dp.Writes() - before; n > 0 {
			t.Errorf("%s: %d writes, want 0", when, n)
		}
	}
	quiet("at first")
	for name, corrupt := range corruptions {
		corrupt(t, r.dp)
		found := r.audit(svcs)
		t.Logf("%s: %s", name, strings.Join(found, "; "))
		if len(found) == 0 {
			t.Errorf("%s: nothing was found", name)
		}
		quiet("after " + name)
		r.worksAsBefore(name)
	}
	held := r.open("client1", lab.TCP, "10.96.0.1:80")
	for _, corrupt := range corruptions {
		corrupt(t, r.dp)
	}
	if found := r.audit(svcs); len(found) < 10 {
		t.Errorf("everything at once: found %q", found)
	}
	quiet("after everything at once")
	r.worksAsBefore("everything at once")
	r.ping(held, "held over all repairs")
}

// worksAsBefore dials every Service of auditRig.
func (r *rig) worksAsBefore(after string) {
	r.t.Helper()
	for _, from := range []string{"client1", "client2"} {
		got, _ := r.dial(from, lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort("10.96.0.1:80")}, 4)
		if got["backend1"] != 2 || got["backend2"] != 2 {
			r.t.Errorf("%s: round-robin from %s went to %v", after, from, got)
		}
		for at, want := range map[string]lab.Kind{"10.96.0.1:81": lab.OK, "172.32.0.1:80": lab.OK, "10.96.0.1:82": lab.Refused, "10.96.0.1:83": lab.Refused} {
			r.answersFrom(from, lab.TCP, at, want)
		}
	}
}

// TestAuditLeavesLaterStates alone: a Sync may come between the agent's list and the
// look.
func TestAuditLeavesLaterStates(t *testing.T) {
	r, svcs := auditRig(t)
	next := r.svc("plain", lb.IPv4, lb.TCP, "round-robin", r.pods(lb.IPv4, "backend1", "backend2", "backend3"), svcs[0].Frontends...)
	r.sync(dataplane.Delta{Put: []*dataplane.Service{next}})
	if found := r.audit(svcs[:1]); len(found) > 0 {
		t.Errorf("found %q in a Service that has changed", found)
	}
	r.sync(dataplane.Delta{Delete: []lb.ServiceName{svcs[0].Name}})
	if found := r.audit(svcs[:1]); len(found) > 0 {
		t.Errorf("found %q in a Service that is gone", found)
	}
}
