// SPDX-License-Identifier: Apache-2.0

package health

import (
	"reflect"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestResting: who has weight 0 in a pool is told once, with its pools.
func TestResting(t *testing.T) {
	svc := &lb.Service{Name: lb.ServiceName{Object: lb.Object{Namespace: "shop", Name: "web"}}}
	svc.Cluster.Backends = []lb.Backend{{Addr: addr(1), Weight: 1}, {Addr: addr(2)}, {Addr: addr(3)}}
	svc.Local.Backends = []lb.Backend{{Addr: addr(1)}, {Addr: addr(3)}}
	want := []Resting{{svc.Name, addr(2), true, false}, {svc.Name, addr(3), true, true}, {svc.Name, addr(1), false, true}}
	if got := resting(svc); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	m := &Monitor{objects: map[lb.Object]*object{svc.Name.Object: {ports: []port{{svc: svc, out: svc}}}}}
	if got := m.Resting(); !reflect.DeepEqual(got, want) {
		t.Errorf("the monitor: got %+v, want %+v", got, want)
	}
}
