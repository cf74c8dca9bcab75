// SPDX-License-Identifier: Apache-2.0

package algo

// leastConnection picks the member with the fewest connections for its weight,
// the new one included: the least (connections + 1) / weight. Among equals the
// first from a random start wins, so that they share the connections.
// Source: Zhang, "Linux Virtual Server for scalable network services", Ottawa
// Linux Symposium 2000, weighted least-connection scheduling.
var leastConnection = Algorithm{Name: "least-connection", Build: buildLeastConnection}

func buildLeastConnection(ms []Member) Table {
	return Table{Kind: Least, Cost: Conns, N: uint32(len(ms)), Factors: factors(ms), Starters: starters(ms)}
}
