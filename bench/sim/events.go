// SPDX-License-Identifier: Apache-2.0

package main

import "math"

var never = math.Inf(1)

// agenda holds one time for each server: when its next request is done. It is a
// heap with four children to a node, which has half the depth of a binary one.
type agenda struct {
	at    []float64 // by server; never: nothing to do
	heap  []int32   // servers
	place []int32   // by server: where it is in heap
}

func newAgenda(servers int) *agenda {
	a := &agenda{make([]float64, servers), make([]int32, servers), make([]int32, servers)}
	for i := range a.at {
		a.at[i], a.heap[i], a.place[i] = never, int32(i), int32(i)
	}
	return a
}

// next returns the earliest time and whose it is.
func (a *agenda) next() (float64, int) {
	s := a.heap[0]
	return a.at[s], int(s)
}

// set changes the time of a server.
func (a *agenda) set(server int, at float64) {
	was := a.at[server]
	a.at[server] = at
	switch {
	case at < was:
		a.up(a.place[server], int32(server))
	case at > was:
		a.down(a.place[server], int32(server))
	}
}

func (a *agenda) put(i, server int32) { a.heap[i], a.place[server] = server, i }

func (a *agenda) up(i, server int32) {
	at := a.at[server]
	for i > 0 {
		parent := (i - 1) / 4
		if a.at[a.heap[parent]] <= at {
			break
		}
		a.put(i, a.heap[parent])
		i = parent
	}
	a.put(i, server)
}

func (a *agenda) down(i, server int32) {
	at, n := a.at[server], int32(len(a.heap))
	for {
		first := 4*i + 1
		if first >= n {
			break
		}
		least, leastAt := first, a.at[a.heap[first]]
		for c := first + 1; c < min(first+4, n); c++ {
			if t := a.at[a.heap[c]]; t < leastAt {
				least, leastAt = c, t
			}
		}
		if leastAt >= at {
			break
		}
		a.put(i, a.heap[least])
		i = least
	}
	a.put(i, server)
}

// message is something that happens to a request after a constant delay.
type message struct {
	at   float64
	req  int32
	turn uint32 // of the request's record, which is used again
	kind messageKind
}

type messageKind uint8

const (
	reachServer messageKind = iota // the request is at its backend
	seeConnect                     // the node sees the answer to a connect
	seeFirst                       // the node sees the first byte
	seeEnd                         // the node sees the end
	giveUp                         // the client's timeout
)

// wire holds messages in order of time: all have the same delay.
type wire struct{ ring[message] }

// next returns the time of the first message.
func (w *wire) next() float64 {
	if w.size == 0 {
		return never
	}
	return w.items[w.first].at
}

// ring is a queue, first in, first out.
type ring[T any] struct {
	items       []T // the length is a power of two
	first, size int
}

func (r *ring[T]) push(v T) {
	if r.size == len(r.items) {
		bigger := make([]T, max(4, 2*len(r.items)))
		n := copy(bigger, r.items[r.first:])
		copy(bigger[n:], r.items[:r.first])
		r.items, r.first = bigger, 0
	}
	r.items[(r.first+r.size)&(len(r.items)-1)] = v
	r.size++
}

func (r *ring[T]) pop() T {
	v := r.items[r.first]
	r.first = (r.first + 1) & (len(r.items) - 1)
	r.size--
	return v
}
