// SPDX-License-Identifier: Apache-2.0

package flowtest

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/lbproxy/lbproxy/internal/agent"
	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/endpoints"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// world is the cluster that the rules of one Config see.
type world struct {
	net     *Network
	config  *Config
	builder *builder
	store   *endpoints.Store
	rules   []*Rule
	built   map[string]map[string]*built // by rule and Service
}

// newWorld returns a cluster with the own Node only. It takes the way that objects
// take in the product, as if they came from an API server.
func newWorld(n *Network, c *Config) *world {
	sources := []endpoints.Source{endpoints.Services, endpoints.EndpointSlices}
	w := &world{net: n, config: c, builder: newBuilder(n), built: map[string]map[string]*built{}}
	w.store = endpoints.New(endpoints.Options{
		NodeName: hereName, Sources: sources,
		MasqueradeAll: c.MasqueradeAll, DenyExternalIPs: c.DenyExternalIPs,
		CheckAlgorithm: algo.Check, DefaultAlgorithm: "round-robin",
	}, slog.New(slog.DiscardHandler), nil)
	w.store.UpsertNode(c.node(n))
	for _, s := range sources {
		w.store.MarkSynced(s)
	}
	return w
}

// setup is what the dataplane is told.
func (w *world) setup() Setup { return w.config.setup(w.net, w.store.Node()) }

// add makes the objects of a rule.
func (w *world) add(t *testing.T, number int, r *Rule) {
	t.Helper()
	w.rules = append(w.rules, r)
	w.builder.made = map[string]*built{}
	w.built[r.Name] = w.builder.made
	for i := range r.Services {
		s := &r.Services[i]
		if w.builder.made[s.Name] != nil {
			t.Fatalf("rule %s: two Services %s", r.Name, s.Name)
		}
		b := w.builder.build(fmt.Sprintf("r%d-%s", number, s.Name), s)
		w.builder.made[s.Name] = b
		w.store.UpsertService(b.svc)
		for _, sl := range b.slices {
			w.store.UpsertSlice(sl)
		}
	}
}

// program makes dp what the Store says now.
func (w *world) program(t *testing.T, dp dataplane.Dataplane) {
	t.Helper()
	changes, full := w.store.Take()
	delta := dataplane.Delta{Full: full}
	for _, c := range changes {
		for _, svc := range c.Services {
			compiled, err := agent.Compile(svc, agent.Defaults{Algorithm: "round-robin"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			delta.Put = append(delta.Put, compiled)
		}
		if !full && len(c.Services) == 0 {
			delta.Delete = append(delta.Delete, w.names(c.Object)...)
		}
	}
	slices.SortFunc(delta.Put, func(a, b *dataplane.Service) int { return cmp.Compare(a.Name.String(), b.Name.String()) })
	if err := dp.Sync(t.Context(), delta); err != nil {
		t.Fatal(err)
	}
}

// names returns the names that the ports of a Service have in both families.
func (w *world) names(obj lb.Object) []lb.ServiceName {
	var names []lb.ServiceName
	for _, f := range families {
		names = append(names,
			lb.ServiceName{Object: obj, Port: "t", Proto: lb.TCP, Family: f}, lb.ServiceName{Object: obj, Port: "u", Proto: lb.UDP, Family: f})
	}
	return names
}
