// SPDX-License-Identifier: Apache-2.0

package health

import (
	"container/heap"
	"time"
)

// dated is what an element of a queue embeds. It begins as undated.
type dated struct {
	due   time.Time
	place int // in the queue; -1: it is not there
}

// undated is a dated that is in no queue.
var undated = dated{place: -1}

func (d *dated) date() *dated { return d }

// queue has the element that is due first at its beginning.
type queue[T interface{ date() *dated }] []T

// put puts x where it belongs by its due, whether it is there already or not.
func (q *queue[T]) put(x T) {
	if d := x.date(); d.place >= 0 {
		heap.Fix(q, d.place)
		return
	}
	heap.Push(q, x)
}

// remove takes x out, if it is there.
func (q *queue[T]) remove(x T) {
	if d := x.date(); d.place >= 0 {
		heap.Remove(q, d.place)
	}
}

// Len is for heap.
func (q queue[T]) Len() int { return len(q) }

// Less is for heap.
func (q queue[T]) Less(i, j int) bool { return q[i].date().due.Before(q[j].date().due) }

// Swap is for heap.
func (q queue[T]) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].date().place, q[j].date().place = i, j
}

// Push is for heap.
func (q *queue[T]) Push(x any) {
	t := x.(T)
	t.date().place = len(*q)
	*q = append(*q, t)
}

// Pop is for heap.
func (q *queue[T]) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	clear((*q)[last:])
	*q = (*q)[:last]
	t.date().place = -1
	return t
}
