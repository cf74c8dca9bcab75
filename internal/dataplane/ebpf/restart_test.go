// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"context"
	"errors"
	"fmt"
	stdmaps "maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// devices counts the devices that masquerading knows.
func (r *rig) devices() (n int) {
	var k uint32
	var v lbDevice
	for it := r.dp.maps.byName[lbMapDevices].Iterate(); it.Next(&k, &v); {
		n++
	}
	return n
}

// pins counts the pinned links.
func (r *rig) pins() int {
	links, err := os.ReadDir(filepath.Join(pinDir(r.opts.BPFFS), "links"))
	if err != nil {
		r.t.Fatal(err)
	}
	return len(links)
}

// TestLateDevice makes a connection to a backend behind a device that has no program yet,
// as a new pod's has not for a moment, so that nobody masquerades its first packets. It
// goes on when the device has one.
func TestLateDevice(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Devices = []string{"[^v]*", "v-[^b]*"} }) // not v-backend1
	r.sync(dataplane.Delta{Put: []*dataplane.Service{r.svc("web", lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, "backend1"),
		frontend(lb.LoadBalancer, lb.TCP, vips[lb.IPv4], lb.MasqueradeAlways))}})
	c := r.open(lab.Outside, lab.TCP, vips[lb.IPv4])
	r.ping(c, "before the device has a program")
	r.stop()
	r.opts.Devices = nil
	r.start()
	r.ping(c, "when it has one")
	if got, _ := r.dial(lab.Outside, lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4])}, 1); got["backend1"] != 1 {
		t.Errorf("a new connection: %v, want backend1", got)
	}
}

// TestRestartUnderLoad ends the agent and starts another one, while connections
// go on and new ones are made. Nothing fails, and nothing is written.
func TestRestartUnderLoad(t *testing.T) {
	r := newRig(t, nil)
	d := dataplane.Delta{Full: true}
	for f, vip := range vips {
		for _, p := range []lb.Proto{lb.TCP, lb.UDP} {
			d.Put = append(d.Put, r.svc("web", f, p, "round-robin", r.pods(f, "backend1", "backend2", "remote1"),
				frontend(lb.LoadBalancer, p, vip, lb.MasqueradeAlways)))
		}
	}
	r.sync(d)
	ctx, cancel := context.WithCancel(t.Context())
	failures := map[string]<-chan error{}
	for _, from := range []string{"client1", "client2", lab.Node, lab.Outside} {
		for f, vip := range vips {
			for _, proto := range []string{lab.TCP, lab.UDP} {
				failures[fmt.Sprint(from, proto, f)] = r.held(ctx, from, proto, vip)
			}
		}
	}
	for i := range 5 {
		r.stop()
		r.start()
		before := r.dp.Writes()
		r.sync(d)
		if after := r.dp.Writes(); before != 0 || after != 0 {
			t.Errorf("restart %d: %d writes by Open, %d by Sync, want 0", i, before, after-before)
		}
	}
	cancel()
	for name, failed := range failures {
		if err := <-failed; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// errKilled is what a test stops a Sync with.
var errKilled = errors.New("killed")

// TestKilledAtEveryWrite stops a Sync before each of its writes in turn, as a
// kill would, and starts again: the kernel must then have exactly what is
// desired, and give back everything else.
func TestKilledAtEveryWrite(t *testing.T) {
	l := labtest.NewLab(t, lab.Options{Pods: []lab.PodSpec{}})
	r := &rig{t: t, lab: l, opts: labOptions(t, l)}
	r.opts.Sizes = Sizes{
		Services: 64, Frontends: 64, Backends: 64, Slots: 256, Conns: 64, Flows: 64, Affinities: 64, SourceRanges: 64,
	}
	first, second := r.killWorlds()
	for n := uint64(1); ; n++ {
		r.fresh()
		r.sync(first)
		killed := r.syncKilledAt(second, n)
		r.reopen()
		r.sync(second)
		r.compare(fmt.Sprintf("killed before write %d", n), second)
		if !killed {
			t.Logf("%d writes", n-1)
			break
		}
	}
}

// killWorlds are two states that differ in every way a Service can.
func (r *rig) killWorlds() (a, b dataplane.Delta) {
	bs := func(ns ...byte) (out []lb.Backend) {
		for _, n := range ns {
			out = append(out, lb.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 80), Weight: 1})
		}
		return out
	}
	at := func(typ lb.FrontendType, addr string) func(string) lb.Frontend {
		return func(port string) lb.Frontend { return frontend(typ, lb.TCP, addr+":"+port, lb.MasqueradeOffCluster) }
	}
	fe, other, third := at(lb.ClusterIP, "10.96.0.1"), at(lb.ClusterIP, "10.96.0.2"), at(lb.ClusterIP, "10.96.0.3")
	balancer := at(lb.LoadBalancer, "172.32.0.1")
	a = dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.svc("backends", lb.IPv4, lb.TCP, "random", bs(1, 2, 3), fe("1")),
		r.svc("frontends", lb.IPv4, lb.TCP, "random", bs(1, 2), fe("2"), fe("3")),
		r.svc("gone", lb.IPv4, lb.TCP, "round-robin", bs(1, 2), fe("4"), fe("5")),
		r.svc("same", lb.IPv4, lb.TCP, "round-robin", bs(7, 8), fe("6")),
		ranged(r.svc("ranges", lb.IPv4, lb.TCP, "random", bs(1, 2), balancer("1"), other("1")), "10.1.0.0/16", "10.2.0.0/16"),
		sticky(r.svc("clients", lb.IPv4, lb.UDP, "random", bs(1, 2, 3), balancer("2")), time.Hour, "10.0.0.3:80"),
	}}
	b = dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.svc("backends", lb.IPv4, lb.TCP, "random", bs(2, 4, 5, 6), fe("1")),
		r.svc("frontends", lb.IPv4, lb.TCP, "random", bs(1, 2), fe("3"), fe("7")),
		r.svc("new", lb.IPv4, lb.TCP, "round-robin", bs(1, 9), fe("4"), fe("8")),
		r.svc("same", lb.IPv4, lb.TCP, "round-robin", bs(7, 8), fe("6")),
		ranged(r.svc("ranges", lb.IPv4, lb.TCP, "random", bs(1, 2), balancer("1"), third("1")), "10.2.0.0/16", "10.3.0.0/16"),
		sticky(r.svc("clients", lb.IPv4, lb.UDP, "random", bs(1, 4), balancer("2")), time.Minute, "10.0.0.3:80"),
		ranged(sticky(r.svc("both", lb.IPv4, lb.TCP, "random", bs(5), balancer("3")), time.Minute), "10.4.0.0/16"),
	}}
	return a, b
}

func ranged(svc *dataplane.Service, ranges ...string) *dataplane.Service {
	for _, p := range ranges {
		svc.Terms.SourceRanges = append(svc.Terms.SourceRanges, netip.MustParsePrefix(p))
	}
	for i := range svc.Frontends {
		svc.Frontends[i].Ranged = svc.Frontends[i].Type == lb.LoadBalancer
	}
	return svc
}

func sticky(svc *dataplane.Service, affinity time.Duration, draining ...string) *dataplane.Service {
	svc.Terms.Affinity = affinity
	for _, a := range draining {
		svc.Terms.Draining = append(svc.Terms.Draining, netip.MustParseAddrPort(a))
	}
	return svc
}

// fresh opens a Dataplane without any state.
func (r *rig) fresh() {
	r.t.Helper()
	if r.dp != nil {
		if err := r.dp.Close(); err != nil {
			r.t.Fatal(err)
		}
	}
	r.onNode(func() error { _, err := Cleanup(r.opts); return err })
	r.onNode(func() (err error) { r.dp, err = openState(r.opts); return err })
}

func (r *rig) reopen() {
	r.t.Helper()
	if err := r.dp.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.onNode(func() (err error) { r.dp, err = openState(r.opts); return err })
}

// syncKilledAt applies d up to its n-th write. It returns false if there are
// fewer.
func (r *rig) syncKilledAt(d dataplane.Delta, n uint64) (killed bool) {
	r.t.Helper()
	defer func() {
		switch v := recover(); v {
		case nil:
		case errKilled:
			killed = true
		default:
			panic(v)
		}
	}()
	start := r.dp.maps.writes.Load()
	r.dp.maps.before = func(i uint64) {
		if i == start+n {
			panic(errKilled)
		}
	}
	r.sync(d)
	return false
}

// compare fails unless the kernel has exactly d, and uses no more than d needs
// after everything that is not used was given back.
func (r *rig) compare(what string, d dataplane.Delta) {
	r.t.Helper()
	r.dp.reclaim(r.t.Context())
	r.freeOnce()
	want, backends := map[lb.FrontendKey]string{}, uint64(0)
	for _, svc := range d.Put {
		for _, fe := range svc.Frontends {
			want[fe.FrontendKey] = fmt.Sprint(svc.Name, svc.Cluster.Backends, svc.Terms.Affinity, svc.Terms.SourceRanges)
			if fe.Type == lb.ClusterIP {
				unknown := unknownKey(addrOf(fe.Addr.Addr()))
				want[frontendFrom(unknown)] = "nobody"
			}
		}
		backends += uint64(len(svc.Cluster.Backends))
	}
	got := map[lb.FrontendKey]string{}
	var key lbFrontendKey
	var fe lbFrontend
	for it := r.dp.maps.frontends().Iterate(); it.Next(&key, &fe); {
		got[frontendFrom(key)] = r.served(fe.Service)
	}
	var ranges uint64
	for _, svc := range d.Put {
		ranges += uint64(len(svc.Terms.SourceRanges))
	}
	if n := uint64(r.count(r.dp.maps.ranges())); n != ranges {
		r.t.Fatalf("%s: %d source ranges in the table, want %d", what, n, ranges)
	}
	if !stdmaps.Equal(got, want) {
		r.t.Fatalf("%s: the kernel has\n%v, want\n%v", what, got, want)
	}
	for _, u := range r.dp.usage() {
		max := map[string]uint64{lbMapServices: uint64(len(d.Put)), lbMapFrontends: uint64(len(want)), lbMapBackends: backends}
		if n, ok := max[u.Name]; ok && u.Used != n {
			r.t.Fatalf("%s: map %s has %d entries in use, want %d", what, u.Name, u.Used, n)
		}
	}
}

// served returns what the kernel's tables say of a Service, in the form that
// compare wants.
func (r *rig) served(id uint32) string {
	var bs []lb.Backend
	for _, s := range r.dp.maps.pool(id, lb.ScopeCluster) {
		bs = append(bs, lb.Backend{Addr: r.dp.maps.addrPort(s.Backend), Weight: 1})
	}
	for name, svc := range r.dp.services {
		if svc.id == id {
			affinity := time.Duration(r.dp.maps.services[id].Affinity) * time.Second
			return fmt.Sprint(name, bs, affinity, r.rangesOf(id))
		}
	}
	return "nobody"
}

// rangesOf returns a Service's source ranges in the kernel's table.
func (r *rig) rangesOf(id uint32) (ps []netip.Prefix) {
	var key lbSourceRange
	var v uint32
	for it := r.dp.maps.ranges().Iterate(); it.Next(&key, &v); {
		if key.Service == id {
			ps = append(ps, prefixFrom(key.Addr, key.Len-32))
		}
	}
	slices.SortFunc(ps, netip.Prefix.Compare)
	return ps
}

// count returns how many entries a hash table has.
func (r *rig) count(m *ebpf.Map) (n int) {
	var k, v []byte
	for it := m.Iterate(); it.Next(&k, &v); {
		n++
	}
	return n
}

// TestFull fills each table: the Service that does not fit is named, all others
// work, and it gets in when there is room again.
func TestFull(t *testing.T) {
	for _, tc := range []struct {
		table string
		sizes Sizes
	}{
		{lbMapServices, Sizes{Services: 3}},
		{lbMapFrontends, Sizes{Frontends: 4}}, // 2 for each
		{lbMapBackends, Sizes{Backends: 4}},
		{lbMapSlots, Sizes{Slots: 1 + 8 + 8}},
	} {
		t.Run(tc.table, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Sizes = tc.sizes })
			svc := func(name, vip string, hosts ...string) *dataplane.Service {
				return r.svc(name, lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, hosts...),
					frontend(lb.ClusterIP, lb.TCP, vip, lb.MasqueradeOffCluster))
			}
			a, b := svc("a", "10.96.0.1:80", "backend1"), svc("b", "10.96.0.2:80", "backend1", "backend2")
			c := svc("c", "10.96.0.3:80", "backend3")
			r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{a, b}})
			err := r.dp.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{c}})
			var se *dataplane.SyncError
			if !errors.Is(err, dataplane.ErrFull) || !errors.As(err, &se) || se.Failed[c.Name] == nil {
				t.Fatalf("sync of one too many: %v, want a SyncError for %s that wraps ErrFull", err, c.Name)
			}
			t.Log(err)
			r.dp.reclaim(t.Context())
			r.freeOnce()
			r.answersFrom("client1", lab.TCP, "10.96.0.1:80", lab.OK)
			r.answersFrom("client1", lab.TCP, "10.96.0.2:80", lab.OK)
			r.answersFrom("client1", lab.TCP, "10.96.0.3:80", lab.Timeout)
			r.sync(dataplane.Delta{Delete: []lb.ServiceName{b.Name}})
			r.dp.reclaim(t.Context())
			r.sync(dataplane.Delta{Put: []*dataplane.Service{c}})
			r.answersFrom("client1", lab.TCP, "10.96.0.3:80", lab.OK)
		})
	}
}

// freeOnce fails if anything that can be reserved stands twice in a free list.
func (r *rig) freeOnce() {
	r.t.Helper()
	r.dp.mu.Lock()
	defer r.dp.mu.Unlock()
	lists := append([][]uint32{r.dp.serviceIDs.free, r.dp.backendIDs.free}, r.dp.regions.free[:]...)
	for _, l := range lists {
		seen := map[uint32]bool{}
		for _, n := range l {
			if seen[n] {
				r.t.Errorf("%d is free twice: %v", n, l)
			}
			seen[n] = true
		}
	}
}

// TestOldLayoutIsReplaced starts beside the pins of another layout: what it served
// goes on until everything is known, then it is gone.
func TestOldLayoutIsReplaced(t *testing.T) {
	r := newRig(t, nil)
	r.serveVIPs(lb.TCP, "backend1")
	r.stop()
	old := filepath.Join(filepath.Dir(pinDir(r.opts.BPFFS)), "v0")
	if err := os.Rename(pinDir(r.opts.BPFFS), old); err != nil {
		t.Fatal(err)
	}
	r.start()
	to := netip.MustParseAddrPort(vips[lb.IPv4])
	dial := func(what, want string) {
		t.Helper()
		for _, from := range []string{"client1", "client2"} {
			if got, _ := r.dial(from, lab.Request{Proto: lab.TCP, To: to}, 2); got[want] != 2 {
				t.Errorf("%s, from %s: %v, want 2 answers of %s", what, from, got, want)
			}
		}
	}
	dial("before the first sync", "backend1")
	d := dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.svc("web", lb.IPv4, lb.TCP, "round-robin", r.pods(lb.IPv4, "backend2"),
			frontend(lb.LoadBalancer, lb.TCP, vips[lb.IPv4], lb.MasqueradeAlways))}}
	r.sync(d)
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old layout: %v, want it removed", err)
	}
	dial("after it", "backend2")
}
