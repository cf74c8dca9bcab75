// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// gracePeriod makes the kernel wait for program runs. It is a map of maps with
// one element that nobody reads: updating an element waits for all readers
// (maybe_wait_bpf_programs, kernel/bpf/syscall.c, since Linux 4.20). A global
// memory barrier would not do: with one CPU it returns at once.
type gracePeriod struct {
	outer, inner *ebpf.Map
}

func newGracePeriod() (g gracePeriod, err error) {
	inner := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	if g.inner, err = ebpf.NewMap(inner); err != nil {
		return g, fmt.Errorf("create map: %w", err)
	}
	g.outer, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "lb_grace", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner,
	})
	if err != nil {
		g.inner.Close()
		return g, fmt.Errorf("create map of maps: %w", err)
	}
	return g, nil
}

// wait returns when every program run that was under way has ended.
func (g gracePeriod) wait() error { return g.outer.Put(uint32(0), g.inner) }

func (g gracePeriod) close() {
	if g.outer != nil {
		g.outer.Close()
		g.inner.Close()
	}
}
