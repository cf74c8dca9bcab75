// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"context"
	"fmt"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	pickBackends = 20_000 // of all layers of BenchmarkPick together
	pickLayers   = 1000   // at most
)

// BenchmarkPick is the first packet of a connection, by algorithm and by how many backends
// there are to choose from.
func BenchmarkPick(b *testing.B) {
	r := newBenchRig(b)
	for _, n := range []int{1, 10, 100, 1000} {
		for _, name := range algo.Names() {
			c := packetCase{family: lb.IPv4, proto: lb.TCP, flows: min(pickLayers, pickBackends/n)}
			r.b = b
			r.addLayers(c, name, n)
			b.Run(fmt.Sprintf("%s/backends=%d", name, n), func(b *testing.B) { r.connections(b, c) })
			r.b = b
			r.removeAll()
		}
	}
}

// addLayers makes a Service of each of c.flows layers, with n frontends and n backends:
// the backends of a layer are the frontends of the next, so that whichever is chosen,
// the next run of a repeat is a connection that nobody has seen.
func (r *benchRig) addLayers(c packetCase, algorithm string, n int) {
	r.b.Helper()
	delta := dataplane.Delta{Full: true}
	members := make([]algo.Member, n)
	for k := range members {
		members[k] = algo.Member{ID: uint64(k) + 1, Weight: lb.DefaultWeight}
	}
	table, err := algo.Build(algorithm, members)
	if err != nil {
		r.b.Fatal(err)
	}
	for layer := range c.flows {
		svc := &dataplane.Service{
			Name: lb.ServiceName{
				Object: lb.Object{Namespace: "bench", Name: fmt.Sprintf("layer-%d", layer)},
				Proto:  c.proto, Family: c.family,
			},
			Balance: lb.Balance{Algorithm: algorithm, Signal: lb.SignalFirstByte},
			Cluster: dataplane.Pool{Table: table},
		}
		for k := range n {
			svc.Frontends = append(svc.Frontends, lb.Frontend{
				FrontendKey: lb.FrontendKey{Addr: c.node(layer*n + k), Proto: c.proto},
				Type:        lb.ClusterIP, Masquerade: lb.MasqueradeNever,
			})
			svc.Cluster.Backends = append(svc.Cluster.Backends,
				lb.Backend{Addr: c.node((layer+1)*n + k), Weight: lb.DefaultWeight})
		}
		delta.Put = append(delta.Put, svc)
	}
	if err := r.d.Sync(context.Background(), delta); err != nil {
		r.b.Fatal(err)
	}
}
