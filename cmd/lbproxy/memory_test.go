// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestTrimmer(t *testing.T) {
	const mb = 1 << 20
	type step struct {
		heap uint64 // MB, what is seen
		want bool
		left uint64 // MB, after trimming
	}
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"small heaps are left alone", []step{{4, false, 0}, {6, false, 0}, {6, false, 0}, {24, false, 0}, {10, false, 0}}},
		{"not while it grows", []step{{50, false, 0}, {90, false, 0}, {90, true, 40}}},
		{"not again for what is in use", []step{{90, false, 0}, {90, true, 40}, {40, false, 0}, {46, false, 0}, {46, false, 0}}},
		{"little, when nothing happens", []step{{90, false, 0}, {90, true, 40}, {64, false, 0}, {60, false, 0}, {60, true, 40}}},
		{"not while it goes up and down", []step{{90, false, 0}, {90, true, 40}, {60, false, 0}, {50, false, 0}, {62, false, 0}, {52, false, 0}}},
		{"again after a scrape", []step{{90, false, 0}, {80, true, 40}, {240, false, 0}, {240, true, 41}, {41, false, 0}}},
		{"what became smaller by itself", []step{{90, false, 0}, {20, false, 0}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var tr trimmer
			for i, s := range tc.steps {
				if got := tr.due(s.heap * mb); got != s.want {
					t.Fatalf("step %d: heap %d MB: due %t, want %t", i, s.heap, got, s.want)
				}
				if s.want {
					tr.trimmed(s.left * mb)
				}
			}
		})
	}
}

func TestHeapBytes(t *testing.T) {
	if n := heapBytes(); n < 1<<18 || n > 1<<34 {
		t.Errorf("the heap has %d bytes", n)
	}
}
