// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

const (
	// flaw is how probable it is, for each of two bounds of a count, that chance
	// alone crosses it.
	flaw = 1e-11
	// longestTurn is how many places of a turn each backend has at most on average,
	// as docs/ALGORITHMS.md says; where weights need more they are rounded.
	longestTurn = 32
	// enough is about how many connections show a distribution by turns.
	enough = 60
)

// span bounds a count, both ends included.
type span struct{ least, most int }

func (s span) holds(n int) bool { return s.least <= n && n <= s.most }

func (s span) String() string {
	if s.least == s.most {
		return fmt.Sprint(s.least)
	}
	return fmt.Sprintf("%d..%d", s.least, s.most)
}

// spans are bounds by pod.
type spans map[string]span

// String lists the bounds in the order of pods.
func (ss spans) String() string {
	var texts []string
	for _, pod := range slices.Sorted(maps.Keys(ss)) {
		texts = append(texts, ss[pod].String())
	}
	return strings.Join(texts, " ")
}

// sum returns the sum of weights, as a float because it is divided by.
func sum(ws map[string]int) float64 {
	total := 0
	for _, w := range ws {
		total += w
	}
	return float64(total)
}

// chances says how often each of ws may be drawn in n draws by weight: the
// quantiles of the binomial distribution.
func chances(ws map[string]int, n int) spans {
	out := spans{}
	for pod, w := range ws {
		out[pod] = binomial(n, float64(w)/sum(ws))
	}
	return out
}

func binomial(n int, p float64) span {
	if p <= 0 || p >= 1 {
		return span{int(p) * n, int(p) * n}
	}
	lg := func(k int) float64 { v, _ := math.Lgamma(float64(k + 1)); return v }
	mass := func(k int) float64 {
		return math.Exp(lg(n) - lg(k) - lg(n-k) + float64(k)*math.Log(p) + float64(n-k)*math.Log1p(-p))
	}
	s := span{0, n}
	for tail := mass(s.least); tail < flaw; tail += mass(s.least) {
		s.least++
	}
	for tail := mass(s.most); tail < flaw; tail += mass(s.most) {
		s.most--
	}
	return s
}

// turn returns the weights in lowest terms and their sum: how often each has its
// turn in one period.
func turn(ws map[string]int) (reduced map[string]int, period int) {
	divisor := 0
	for _, w := range ws {
		for a := w; a != 0; {
			divisor, a = a, divisor%a
		}
	}
	reduced = map[string]int{}
	for pod, w := range ws {
		reduced[pod] = w / divisor
		period += w / divisor
	}
	return reduced, period
}

// inTurn returns how many connections make whole turns of ws: about enough, or
// just enough where a turn is too long.
func inTurn(ws map[string]int) int {
	_, period := turn(ws)
	if period > longestTurn*len(ws) {
		return enough
	}
	return period * max(1, enough/period)
}

// turns says how often each of ws has its turn in n, from any place in the order on.
// Whole turns are exact. Of others a backend may have its share and one more or less.
func turns(ws map[string]int, n int) spans {
	reduced, period := turn(ws)
	out := spans{}
	for pod, w := range reduced {
		if period > longestTurn*len(ws) {
			share := float64(n) * float64(w) / float64(period)
			out[pod] = span{max(0, int(share)-2), int(share) + 3}
			continue
		}
		whole, share := n/period*w, float64(n%period)*float64(w)/float64(period)
		out[pod] = span{
			whole + max(0, int(math.Floor(share))-1),
			whole + min(w, n%period, int(math.Ceil(share))+1),
		}
		if n%period == 0 {
			out[pod] = span{whole, whole}
		}
	}
	return out
}

// tally is how many connections each pod has.
type tally map[string]int

// cheapest tells whether no other pod has less (connections + 1)/weight than pod.
func (l tally) cheapest(ws map[string]int, pod string) bool {
	for other, w := range ws {
		if (l[other]+1)*ws[pod] < (l[pod]+1)*w {
			return false
		}
	}
	return true
}

// fill says where n more connections go if each goes to the cheapest: exactly, if
// what is open then is whole turns, otherwise as one of some possibilities.
func (l tally) fill(ws map[string]int, n int) tally {
	now, got := maps.Clone(l), tally{}
	for range n {
		for _, pod := range slices.Sorted(maps.Keys(ws)) {
			if now.cheapest(ws, pod) {
				now[pod]++
				got[pod]++
				break
			}
		}
	}
	return got
}
