// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"math"
	"math/rand/v2"
	"sort"
)

// The streams of random numbers of a run. Each has a generator of its own, so
// that two algorithms meet the same arrivals with the same work.
const (
	StreamArrivals = iota
	StreamWork
	StreamNodes
	StreamClients
	StreamPicks
	StreamStarts
)

// Stream is the generator of a stream.
func Stream(seed uint64, number uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, number))
}

// Process makes the times between requests.
type Process struct {
	Rate    float64 // requests per second; may change
	rng     *rand.Rand
	process string
	burst   float64 // bursty: mean seconds
	pause   float64 // bursty: mean seconds
	left    float64 // bursty: of this burst
}

// Draw returns a process with so many requests a second.
func (a Arrivals) Draw(rate float64, rng *rand.Rand) *Process {
	return &Process{Rate: rate, rng: rng, process: a.Process, burst: a.Burst.Seconds(), pause: a.Pause.Seconds()}
}

// Gap returns the seconds until the next request. The mean is 1/Rate in every
// process.
func (p *Process) Gap() float64 {
	switch p.process {
	case "deterministic":
		return 1 / p.Rate
	case "bursty":
		return p.burstyGap()
	}
	return p.rng.ExpFloat64() / p.Rate
}

// burstyGap is that of an interrupted Poisson process: bursts and pauses are
// exponential, and requests come only in bursts.
func (p *Process) burstyGap() float64 {
	busy := p.rng.ExpFloat64() / p.Rate * p.burst / (p.burst + p.pause)
	gap := busy
	for busy > p.left {
		busy -= p.left
		gap += p.rng.ExpFloat64() * p.pause
		p.left = p.rng.ExpFloat64() * p.burst
	}
	p.left -= busy
	return gap
}

// Draw returns a function that draws the seconds of work of a request.
func (s Service) Draw(rng *rand.Rand) func() float64 {
	mean := s.Mean.Seconds()
	switch s.Distribution {
	case "deterministic":
		return func() float64 { return mean }
	case "lognormal":
		sigma2 := math.Log(1 + s.CV*s.CV)
		mu, sigma := math.Log(mean)-sigma2/2, math.Sqrt(sigma2)
		return func() float64 { return math.Exp(mu + sigma*rng.NormFloat64()) }
	case "pareto":
		scale := mean / BoundedParetoMean(s.Alpha, s.Span)
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

// BoundedParetoMean returns the mean of a Pareto distribution of shape alpha
// that is cut to 1..span.
func BoundedParetoMean(alpha, span float64) float64 {
	tail := 1 - math.Pow(span, -alpha)
	if alpha == 1 {
		return math.Log(span) / tail
	}
	return alpha / (alpha - 1) * (1 - math.Pow(span, 1-alpha)) / tail
}

// Draw returns a function that draws a client's number, 0..Count-1.
func (c Clients) Draw(rng *rand.Rand) func() int {
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
