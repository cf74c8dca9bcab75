// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// gcPercent trades time for memory: garbage is made only when something changes.
const gcPercent = 50

// When memory is given back.
const (
	trimPeriod  = time.Second
	trimSlack   = 24 << 20 // bytes that the heap may have more than when it was last trimmed
	quietSlack  = 6 << 20  // the same while next to nothing happens
	quietChange = 1 << 20  // bytes by which the heap changes then
)

// trim gives memory back that a start, a list from the API server or a scrape
// needed for a moment, until ctx ends. Go would keep it until its next collection,
// which comes when the heap has grown by gcPercent or after two minutes, and then
// return it slowly.
func trim(ctx context.Context) error {
	tick := time.NewTicker(trimPeriod)
	defer tick.Stop()
	t := trimmer{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if t.due(heapBytes()) {
			debug.FreeOSMemory()
			_ = forgetFiles() // or they stay where they are
			t.trimmed(heapBytes())
		}
	}
}

// trimmer decides when to trim.
type trimmer struct {
	kept uint64 // bytes of the heap after it was last trimmed
	last uint64 // and when it was last looked at
}

// due tells whether a heap of n bytes should be trimmed: when it is large and no
// longer grows. What makes it grow would soon need the memory again.
func (t *trimmer) due(n uint64) bool {
	last := t.last
	t.last = n
	if n < last+quietChange && last < n+quietChange {
		return n > t.kept+quietSlack
	}
	return n < last && n > t.kept+trimSlack
}

// trimmed notes that n bytes are in use after all.
func (t *trimmer) trimmed(n uint64) { t.kept, t.last = n, n }

// heapBytes returns how much memory the heap has from the operating system.
func heapBytes() uint64 {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	var n uint64
	for _, s := range samples {
		n += s.Value.Uint64()
	}
	return n
}
