// SPDX-License-Identifier: Apache-2.0

package sim

import "math"

// histogram counts times in buckets that are 1/256 of an octave wide, from about
// a nanosecond to two weeks: quantiles are exact to 0.3 %.
type histogram struct {
	counts []uint64
	n      uint64
	sum    float64
	max    float64
}

const (
	bucketShift = 44                                     // of the bits of a float64: 8 of the fraction are left
	firstBucket = (1023 - 30) << (52 - bucketShift)      // of 2^-30 s
	lastBucket  = firstBucket + 50<<(52-bucketShift) - 1 // of 2^20 s
	numBuckets  = lastBucket - firstBucket + 1           // 12,800
)

func newHistogram() *histogram { return &histogram{counts: make([]uint64, numBuckets)} }

func (h *histogram) add(seconds float64) {
	b := int(math.Float64bits(seconds)>>bucketShift) - firstBucket
	h.counts[min(max(b, 0), numBuckets-1)]++
	h.n++
	h.sum += seconds
	h.max = max(h.max, seconds)
}

func (h *histogram) reset() {
	clear(h.counts)
	h.n, h.sum, h.max = 0, 0, 0
}

// mean returns the exact mean in seconds, 0 of nothing.
func (h *histogram) mean() float64 {
	if h.n == 0 {
		return 0
	}
	return h.sum / float64(h.n)
}

// quantile returns the time that a part q of what was added does not exceed; it
// interpolates within a bucket. It is 0 of nothing.
func (h *histogram) quantile(q float64) float64 {
	rank, below := q*float64(h.n), 0.0
	for b, c := range h.counts {
		if c > 0 && below+float64(c) >= rank {
			low, high := bucketStart(b), bucketStart(b+1)
			return min(h.max, low+(high-low)*(rank-below)/float64(c))
		}
		below += float64(c)
	}
	return 0
}

func bucketStart(b int) float64 {
	return math.Float64frombits(uint64(b+firstBucket) << bucketShift)
}
