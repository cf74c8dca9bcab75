// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestKilledAtRandomPoints kills the agent at 100 random points of Syncs that change
// everything, while connections go on: to Services that stay, to backends that leave, and
// through a Service that is deleted. After each kill the next agent makes the kernel equal
// to what is desired, and all connections live.
func TestKilledAtRandomPoints(t *testing.T) {
	const kills = 100
	r := newRig(t, nil)
	worlds := r.changingWorlds()
	r.sync(worlds[0])
	held := map[string]*lab.Conn{}
	for _, from := range []string{"client1", "client2", lab.Node, lab.Outside} {
		for i, vip := range []string{vips[lb.IPv4], vips[lb.IPv6], "172.32.0.21:80", "172.32.0.22:80"} {
			held[fmt.Sprintf("%d from %s", i, from)] = r.open(from, lab.TCP, vip)
		}
	}
	r.stop() // the kernel's part goes on; only Syncs are killed from now on
	adopt := func() { r.onNode(func() (err error) { r.dp, err = openState(r.opts); return err }) }
	adopt()
	before := r.dp.Writes()
	r.sync(worlds[1])
	writes := r.dp.Writes() - before
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d; a Sync writes %d times", seed, writes)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i, killed := 0, 0; killed < kills && i < 2*kills; i++ {
		next := worlds[i%2] // what is there is the other one, at least in part
		at := 1 + rng.Uint64N(writes)
		if r.syncKilledAt(next, at) {
			killed++
		}
		r.reopen()
		r.sync(next)
		if found := r.audit(next.Put); len(found) > 0 {
			t.Fatalf("kill %d, before write %d: found %q", i, at, found)
		}
		r.dp.reclaim(t.Context())
		r.freeOnce()
		for name, c := range held {
			r.ping(c, fmt.Sprintf("kill %d, before write %d: connection %s", i, at, name))
		}
		if t.Failed() {
			return
		}
	}
	if err := r.dp.Close(); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.sync(worlds[1])
	for name, c := range held {
		r.ping(c, "after a start, connection "+name)
	}
	for _, from := range []string{"client1", "client2", lab.Outside} {
		r.answersFrom(from, lab.TCP, vips[lb.IPv4], lab.OK)
	}
	r.recountIsExact("after all kills")
}

// changingWorlds are two states. Of the connections that are made in the first, some have
// lost their backend in the second, or their Service.
func (r *rig) changingWorlds() [2]dataplane.Delta {
	at := func(vip string) lb.Frontend { return frontend(lb.LoadBalancer, lb.TCP, vip, lb.MasqueradeAlways) }
	svc := func(name string, f lb.Family, vip string, hosts ...string) *dataplane.Service {
		return r.svc(name, f, lb.TCP, "round-robin", r.pods(f, hosts...), at(vip))
	}
	first := []*dataplane.Service{
		svc("stays", lb.IPv4, vips[lb.IPv4], "backend1"), svc("stays", lb.IPv6, vips[lb.IPv6], "backend1"),
		svc("changes", lb.IPv4, "172.32.0.21:80", "backend1", "backend2"),
		svc("goes", lb.IPv4, "172.32.0.22:80", "backend3"),
	}
	second := []*dataplane.Service{
		svc("stays", lb.IPv4, vips[lb.IPv4], "backend1"), svc("stays", lb.IPv6, vips[lb.IPv6], "backend1"),
		svc("changes", lb.IPv4, "172.32.0.21:80", "backend3", "remote1"),
		svc("comes", lb.IPv4, "172.32.0.23:80", "backend1", "backend2"),
	}
	for i := range 6 {
		vip := fmt.Sprintf("172.32.0.%d:80", 30+i)
		first = append(first, ranged(svc(fmt.Sprint("more", i), lb.IPv4, vip, "backend1", "backend2"), "10.0.0.0/8"))
		second = append(second, sticky(svc(fmt.Sprint("more", i), lb.IPv4, vip, "backend2", "backend3"), time.Hour))
	}
	byName := func(a, b *dataplane.Service) int { return a.Name.Compare(b.Name) }
	slices.SortFunc(first, byName)
	slices.SortFunc(second, byName)
	return [2]dataplane.Delta{{Full: true, Put: first}, {Full: true, Put: second}}
}
