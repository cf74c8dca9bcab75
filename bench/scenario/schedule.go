// SPDX-License-Identifier: Apache-2.0

package scenario

import "slices"

// Arrival is a request that comes.
type Arrival struct {
	At     float64 // seconds since the beginning
	Work   float64 // seconds at speed 1
	Client int
}

// Capacity is the work that the backends do per second that are there in the beginning.
func (sc *Scenario) Capacity() float64 {
	var sum float64
	for _, g := range sc.Backends {
		if !g.Absent {
			sum += float64(g.Count) * g.Speed * float64(g.Cores)
		}
	}
	return sum
}

// Rate is the requests per second at a load.
func (sc *Scenario) Rate(load float64) float64 {
	return load * sc.Capacity() / sc.Service.Mean.Seconds()
}

// Schedule is the requests of a run at a load: what the simulator draws one by one.
func (sc *Scenario) Schedule(load float64) []Arrival {
	rate := sc.Rate(load)
	process := sc.Arrivals.Draw(rate, Stream(sc.Seed, StreamArrivals))
	work, client := sc.Service.Draw(Stream(sc.Seed, StreamWork)), sc.Clients.Draw(Stream(sc.Seed, StreamClients))
	changes := sc.InOrder()
	out := make([]Arrival, sc.Requests)
	at := process.Gap()
	for i := range out {
		for len(changes) > 0 && changes[0].At.Seconds() <= at {
			if changes[0].Action == ChangeRate {
				process.Rate = rate * changes[0].Factor
			}
			changes = changes[1:]
		}
		out[i] = Arrival{at, work(), client()}
		at += process.Gap()
	}
	return out
}

// InOrder is the changes by time.
func (sc *Scenario) InOrder() []Change {
	changes := slices.Clone(sc.Changes)
	slices.SortStableFunc(changes, func(a, b Change) int { return int(a.At - b.At) })
	return changes
}
