// SPDX-License-Identifier: Apache-2.0

package sim

import "github.com/lbproxy/lbproxy/bench/internal/station"

// never is when nothing is due.
var never = station.Never

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
type wire struct{ station.Ring[message] }

// next returns the time of the first message.
func (w *wire) next() float64 {
	if w.Len() == 0 {
		return never
	}
	return w.First().at
}
