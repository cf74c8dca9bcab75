// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"reflect"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// tables are one of each form that a table can have.
func tables(t *testing.T) map[string]dataplane.Pool {
	t.Helper()
	pools := map[string]dataplane.Pool{}
	for _, name := range algo.Names() {
		for form, ms := range map[string][]algo.Member{
			"equal":    {{ID: 1, Weight: 7}, {ID: 2, Weight: 7}, {ID: 3, Weight: 7}},
			"weighted": {{ID: 1, Weight: 1}, {ID: 2, Weight: 5}, {ID: 3, Weight: 0}},
			"starting": {{ID: 1, Weight: 3}, {ID: 2, Weight: 5, Ramp: 9000}, {ID: 3, Weight: 5}, {ID: 4, Weight: 1, Ramp: 60000}},
			"many":     make([]algo.Member, 70),
		} {
			for i := range ms {
				if form == "many" {
					ms[i] = algo.Member{ID: uint64(i), Weight: uint16(1 + i%3)}
				}
			}
			table, err := algo.Build(name, ms)
			if err != nil {
				t.Fatal(err)
			}
			pools[name+" "+form] = dataplane.Pool{Backends: make([]lb.Backend, len(ms)), Table: table}
		}
	}
	return pools
}

func someIDs(n int) []uint32 {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(100 + i)
	}
	return ids
}

// TestRegionIsReadBack renders every form of table and reads it again.
func TestRegionIsReadBack(t *testing.T) {
	b := lb.Balance{Algorithm: "least-connection", HashKey: lb.HashTuple, Prefix4: 24, Signal: lb.SignalLastByte}
	for name, pool := range tables(t) {
		content := render(b, &pool, someIDs(len(pool.Backends)))
		h, got := tableOf(content, pool.Table.N)
		if !reflect.DeepEqual(got, pool.Table) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, pool.Table)
		}
		if h.name != b.Algorithm {
			t.Errorf("%s: name %q, want %q", name, h.name, b.Algorithm)
		}
		if end := h.layout(pool.Table.N).end; int(end) != len(content) {
			t.Errorf("%s: the head says %d slots, there are %d", name, end, len(content))
		}
	}
}

// TestSameContent ignores what the kernel writes, and nothing else.
func TestSameContent(t *testing.T) {
	for name, pool := range tables(t) {
		n := pool.Table.N
		want := render(lb.Balance{}, &pool, someIDs(len(pool.Backends)))
		bounds := headOf(want).layout(n).bounds
		for i := range want {
			old := append([]lbSlot(nil), want...)
			old[i].Backend ^= 1 << 20
			ignored := uint32(i) >= bounds || i == headMore
			if i == headHow {
				continue // makes the order longer than the region
			}
			if got := sameContent(old, want, n); got != ignored {
				t.Errorf("%s: slot %d differs: same is %t, want %t", name, i, got, ignored)
			}
		}
	}
}
