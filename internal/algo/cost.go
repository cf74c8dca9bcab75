// SPDX-License-Identifier: Apache-2.0

package algo

import "math/bits"

// Limits of what costs are made of. A cost of connections stays below 2^48 and a
// cost of time below 2^63.
const (
	maxActive     = 1<<24 - 1
	maxTimeActive = 1<<16 - 1
	maxLatency    = 1<<23 - 1 // µs: 8.4 s
	halfLife      = 30000     // ms
	averaged      = 16        // a sample moves the average by 1/averaged
)

// CostConns returns the cost of one more connection to a member with factor f:
// (connections + 1) * f. f is at most 2^24.
func CostConns(l Load, f uint32) uint64 {
	return min(uint64(l.Active)+1, maxActive) * uint64(f)
}

// CostTime returns the cost of one more connection to a member with factor f:
// latency * (connections + 1) * f. f is at most 2^24. A latency halves with each
// 30 s in which the member got no connection and was not measured, so that a slow
// one is tried again; of what is left the three leading bits count, so that members which differ by
// less share the connections. An unknown latency is
// the lowest one for the first connection and the highest for others: a member that
// never answers gets one at a time.
func CostTime(l Load, f uint32) uint64 {
	t := l.Latency >> min(l.Idle/halfLife, 31)
	if l.Latency == 0 && l.Active > 0 {
		t = maxLatency
	}
	t = min(max(t, 1), maxLatency)
	t &= ^uint32(0) << max(bits.Len32(t)-3, 0)
	return uint64(t) * min(uint64(l.Active)+1, maxTimeActive) * uint64(f)
}

// NextLatency returns the moving average after one more sample, both in µs. idle is
// how many ms ago the one before was taken. The first sample is the average (old is
// 0), each later one has a weight of 1/16; what the past weighs halves with each
// 30 s without a sample, so that one attempt says whether a member has recovered.
// The result is in 1..2^23-1.
// Source: Jacobson, "Congestion avoidance and control", SIGCOMM 1988, appendix A.
// The constants are those that the simulator found best; see docs/SIMULATOR.md.
func NextLatency(old, sample, idle uint32) uint32 {
	sample = min(max(sample, 1), maxLatency)
	if old == 0 {
		return sample
	}
	old = min(old, maxLatency)
	stale := min(idle/halfLife, 31)
	if sample < old {
		return sample + (old-(old-sample)/averaged-sample)>>stale
	}
	return sample - (sample-(old+(sample-old)/averaged))>>stale
}
