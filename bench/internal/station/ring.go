// SPDX-License-Identifier: Apache-2.0

package station

// Ring is a queue, first in, first out.
type Ring[T any] struct {
	items       []T // the length is a power of two
	first, size int
}

// Push puts v at the end.
func (r *Ring[T]) Push(v T) {
	if r.size == len(r.items) {
		bigger := make([]T, max(4, 2*len(r.items)))
		n := copy(bigger, r.items[r.first:])
		copy(bigger[n:], r.items[:r.first])
		r.items, r.first = bigger, 0
	}
	r.items[(r.first+r.size)&(len(r.items)-1)] = v
	r.size++
}

// Pop takes the first one, which must be there.
func (r *Ring[T]) Pop() T {
	v := r.items[r.first]
	r.first = (r.first + 1) & (len(r.items) - 1)
	r.size--
	return v
}

// Len is how many there are.
func (r *Ring[T]) Len() int { return r.size }

// First is the first one, which must be there.
func (r *Ring[T]) First() *T { return &r.items[r.first] }
