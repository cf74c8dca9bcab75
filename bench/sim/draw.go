// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"math/rand/v2"
	"sort"
)

// The streams of random numbers of a run. Each has a generator of its own, so
// that two algorithms meet the same arrivals with the same work.
const (
	streamArrivals = iota
	streamWork
	streamNodes
	streamClients
	streamPicks
	streamStarts
)

func stream(seed uint64, number uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, number))
}

// arrivals makes the times between requests.
type arrivals struct {
	rng     *rand.Rand
	rate    float64 // requests per second
	process string
	burst   float64 // bursty: mean seconds
	pause   float64 // bursty: mean seconds
	left    float64 // bursty: of this burst
}

func newArrivals(a Arrivals, rate float64, rng *rand.Rand) *arrivals {
	return &arrivals{rng: rng, rate: rate, process: a.Process, burst: a.Burst.seconds(), pause: a.Pause.seconds()}
}

// gap returns the seconds until the next request. The mean is 1/rate in every
// process.
func (a *arrivals) gap() float64 {
	switch a.process {
	case "deterministic":
		return 1 / a.rate
	case "bursty":
		return a.burstyGap()
	}
	return a.rng.ExpFloat64() / a.rate
}

// burstyGap is that of an interrupted Poisson process: bursts and pauses are
// exponential, and requests come only in bursts.
func (a *arrivals) burstyGap() float64 {
	busy := a.rng.ExpFloat64() / a.rate * a.burst / (a.burst + a.pause)
	gap := busy
	for busy > a.left {
		busy -= a.left
		gap += a.rng.ExpFloat64() * a.pause
		a.left = a.rng.ExpFloat64() * a.burst
	}
	a.left -= busy
	return gap
}

// work returns a function that draws the seconds of work of a request.
func work(s Service, rng *rand.Rand) func() float64 {
	mean := s.Mean.seconds()
	switch s.Distribution {
	case "deterministic":
		return func() float64 { return mean }
	case "lognormal":
		sigma2 := math.Log(1 + s.CV*s.CV)
		mu, sigma := math.Log(mean)-sigma2/2, math.Sqrt(sigma2)
		return func() float64 { return math.Exp(mu + sigma*rng.NormFloat64()) }
	case "pareto":
		scale := mean / boundedParetoMean(s.Alpha, s.Span)
		tail := 1 - math.Pow(s.Span, -s.Alpha)
		return func() float64 { return scale * math.Pow(1-rng.Float64()*tail, -1/s.Alpha) }
	case "bimodal":
		short := mean / (1 - s.Long + s.Long*s.Span)
		return func() float64 {
			if rng.Float64() < s.Long {
				return short * s.Span
			}
			return short
		}
	}
	return func() float64 { return rng.ExpFloat64() * mean }
}

// boundedParetoMean returns the mean of a Pareto distribution of shape alpha
// that is cut to 1..span.
func boundedParetoMean(alpha, span float64) float64 {
	tail := 1 - math.Pow(span, -alpha)
	if alpha == 1 {
		return math.Log(span) / tail
	}
	return alpha / (alpha - 1) * (1 - math.Pow(span, 1-alpha)) / tail
}

// clients returns a function that draws a client's number, 0..Count-1.
func clients(c Clients, rng *rand.Rand) func() int {
	if c.Zipf == 0 {
		return func() int { return rng.IntN(c.Count) }
	}
	upTo := make([]float64, c.Count)
	var total float64
	for i := range upTo {
		total += math.Pow(float64(i+1), -c.Zipf)
		upTo[i] = total
	}
	return func() int {
		return min(sort.SearchFloat64s(upTo, rng.Float64()*total), c.Count-1)
	}
}
