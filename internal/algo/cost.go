// SPDX-License-Identifier: Apache-2.0

package algo

import "math/bits"

// Limits of what costs are made of. A cost of connections stays below 2^48 and a
// cost of time below 2^63.
const (
	maxActive     = 1<<24 - 1
	maxTimeActive = 1<<16 - 1
	maxLatency    = 1<<23 - 1 // µs: 8.4 s
	halfLife      = 10000     // ms
)

// CostConns returns the cost of one more connection to a member with factor f:
// (connections + 1) * f. f is at most 2^24.
func CostConns(l Load, f uint32) uint64 {
	return min(uint64(l.Active)+1, maxActive) * uint64(f)
}

// CostTime returns the cost of one more connection to a member with factor f:
// latency * (connections + 1) * f. f is at most 2^24. A latency halves with each
// 10 s in which it was not measured, so that a slow member is tried again; of
// what is left the three leading bits count, so that members which differ by
// less share the connections. An unknown latency is the lowest one.
func CostTime(l Load, f uint32) uint64 {
	t := l.Latency >> min(l.Idle/halfLife, 31)
	t = min(max(t, 1), maxLatency)
	t &= ^uint32(0) << max(bits.Len32(t)-3, 0)
	return uint64(t) * min(uint64(l.Active)+1, maxTimeActive) * uint64(f)
}

// NextLatency returns the moving average after one more sample, both in µs. The
// first sample is the average (old is 0), each later one has a weight of 1/8.
// The result is in 1..2^23-1.
// Source: Jacobson, "Congestion avoidance and control", SIGCOMM 1988, appendix A.
func NextLatency(old, sample uint32) uint32 {
	sample = min(max(sample, 1), maxLatency)
	if old == 0 {
		return sample
	}
	old = min(old, maxLatency)
	return uint32(max(int32(old)+(int32(sample)-int32(old))/8, 1))
}
