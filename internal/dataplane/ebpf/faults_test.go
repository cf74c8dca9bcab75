// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestFullOfRanges has more source ranges than the table: the Service that does not fit
// keeps those that it had.
func TestFullOfRanges(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Sizes.SourceRanges = 3 })
	svc := func(ranges ...string) *dataplane.Service {
		return ranged(r.svc("web", lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, "backend1"),
			frontend(lb.LoadBalancer, lb.TCP, vips[lb.IPv4], lb.MasqueradeAlways)), ranges...)
	}
	outside := lab.OutsideAddr4.String() + "/32"
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc("10.0.0.0/8", outside)}})
	err := r.dp.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{svc("11.0.0.0/8", "12.0.0.0/8")}})
	if !errors.Is(err, dataplane.ErrFull) {
		t.Fatalf("sync of one too many: %v, want ErrFull", err)
	}
	t.Log(err)
	r.answersFrom(lab.Outside, lab.TCP, vips[lb.IPv4], lab.OK)
	if n := r.count(r.dp.maps.ranges()); n != 2 {
		t.Errorf("%d ranges after a change that failed, want 2", n)
	}
	r.sync(dataplane.Delta{Put: []*dataplane.Service{svc("11.0.0.0/8")}})
	r.answersFrom(lab.Outside, lab.TCP, vips[lb.IPv4], lab.Timeout)
	if n := r.count(r.dp.maps.ranges()); n != 1 {
		t.Errorf("%d ranges, want 1", n)
	}
}

// TestRangesOfWhatDoesNotFit adds source ranges and a frontend for which there is no room:
// neither the Service nor the next one with its id admits anybody more.
func TestRangesOfWhatDoesNotFit(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Sizes.Frontends = 1 })
	const other = "172.31.9.9:80"
	svc := func(name string, at []string, ranges ...string) *dataplane.Service {
		var fes []lb.Frontend
		for _, a := range at {
			fes = append(fes, frontend(lb.LoadBalancer, lb.TCP, a, lb.MasqueradeAlways))
		}
		return ranged(r.svc(name, lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, "backend1"), fes...), ranges...)
	}
	vip, outside := vips[lb.IPv4], lab.OutsideAddr4.String()+"/32"
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc("web", []string{vip}, "11.0.0.0/8")}})
	for _, more := range []*dataplane.Service{
		svc("web", []string{vip, other}, "11.0.0.0/8", outside), svc("other", []string{other}, "12.0.0.0/8", outside),
	} {
		if err := r.dp.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{more}}); !errors.Is(err, dataplane.ErrFull) {
			t.Fatalf("sync of one frontend too many: %v, want ErrFull", err)
		}
		if n := r.count(r.dp.maps.ranges()); n != 1 {
			t.Errorf("%d ranges after a change of %s that failed, want 1", n, more.Name)
		}
		r.answersFrom(lab.Outside, lab.TCP, vip, lab.Timeout)
	}
}

// TestAllGoneAtOnce deletes 10,000 Services in one Sync, beside one that stays and
// holds a connection.
func TestAllGoneAtOnce(t *testing.T) {
	r := newRig(t, nil)
	const n = 10_000
	stays := r.svc("stays", lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, "backend1"),
		frontend(lb.ClusterIP, lb.TCP, "10.96.255.1:80", lb.MasqueradeOffCluster))
	all := []*dataplane.Service{stays}
	for i := range n {
		addr := netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})
		svc := sticky(r.svc(fmt.Sprintf("svc-%d", i), lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, "backend1", "backend2"),
			frontend(lb.ClusterIP, lb.TCP, addr.String()+":80", lb.MasqueradeOffCluster)), 1e9)
		svc.Terms.SourceRanges = []netip.Prefix{netip.PrefixFrom(addr, 32)}
		all = append(all, svc)
	}
	r.sync(dataplane.Delta{Full: true, Put: all})
	r.answersFrom("client1", lab.TCP, "10.97.39.15:80", lab.OK)
	held := map[string]*lab.Conn{}
	for _, from := range callers {
		held[from] = r.open(from, lab.TCP, "10.96.255.1:80")
	}
	doomed := r.open("client2", lab.TCP, "10.97.0.1:80")
	r.sync(dataplane.Delta{Full: true, Put: all[:1]})
	for from, c := range held {
		r.ping(c, "from "+from+" to the Service that stays")
	}
	r.ping(doomed, "of a Service that is gone: it lives until it is closed")
	r.answersFrom("client1", lab.TCP, "10.97.39.15:80", lab.Timeout)
	if err := doomed.Close(t.Context(), "rst"); err != nil {
		t.Error(err)
	}
	r.eventually("everything is given back", func() bool {
		r.dp.reclaim(t.Context())
		used := map[string]uint64{}
		for _, u := range r.dp.usage() {
			used[u.Name] = u.Used
		}
		return used[lbMapServices] == 1 && used[lbMapBackends] == 1 && used[lbMapSlots] == 8 &&
			used[lbMapFrontends] == 2 && r.count(r.dp.maps.ranges()) == 0 && r.count(r.dp.maps.frontends()) == 2
	})
	r.freeOnce()
}

// TestDevicesVanishWhileProgramming removes pods, with their devices, while Syncs that
// name them run: what is left is served, and nothing stays behind.
func TestDevicesVanishWhileProgramming(t *testing.T) {
	r := newRig(t, nil)
	vip := "10.96.0.1:80"
	stays := r.pods(lb.IPv4, "backend1")
	put := func(more ...lb.Backend) {
		bs := append(slices.Clone(stays), more...)
		slices.SortFunc(bs, lb.Backend.Compare)
		r.sync(dataplane.Delta{Put: []*dataplane.Service{r.svc("web", lb.IPv4, lb.TCP, "round-robin", bs,
			frontend(lb.ClusterIP, lb.TCP, vip, lb.MasqueradeOffCluster))}})
	}
	put()
	devices, pins := r.devices(), r.pins()
	held := r.open("client2", lab.TCP, vip)
	for i := range 10 {
		name := fmt.Sprintf("short%d", i)
		h, err := r.lab.AddPod(lab.PodSpec{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		removed := make(chan error, 1)
		go func() { removed <- r.lab.RemoveHost(name) }()
		for range 50 {
			put(lb.Backend{Addr: netip.AddrPortFrom(h.Addr4, backendPort), Weight: lb.DefaultWeight, Local: true})
			put()
		}
		if err := <-removed; err != nil {
			t.Fatal(err)
		}
		r.ping(held, "over the removal of a device")
		r.answersFrom("client1", lab.TCP, vip, lab.OK)
		r.answersFrom("client2", lab.TCP, vip, lab.OK)
	}
	r.eventually("the devices' entries and pins are gone", func() bool {
		return r.devices() == devices && r.pins() == pins
	})
	if found := r.audit(nil); len(found) > 0 {
		t.Errorf("found %q", found)
	}
}
