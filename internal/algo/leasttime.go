// SPDX-License-Identifier: Apache-2.0

package algo

// leastTime picks, of 16 members from a random start, the one with the least
// latency * (connections + 1) / weight. It looks at few because many who look at
// all members would run to the same fast one before its latency tells.
// Source: the peak-EWMA balancer of Finagle (Twitter, 2014), with a plain moving
// average and d = 16 choices in place of 2.
var leastTime = Algorithm{Name: "least-time", Build: buildLeastTime}

func buildLeastTime(ms []Member) Table {
	return Table{Kind: Few, Cost: Time, N: uint32(len(ms)), Factors: factors(ms), Starters: starters(ms)}
}
