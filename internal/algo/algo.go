// SPDX-License-Identifier: Apache-2.0

// Package algo holds every balancing algorithm once. An algorithm is a Build,
// which runs when weights or members change and turns them into a Table, and a
// Kind, which says how a table is read for one new connection. Pick is the
// reference for the kinds; bpf/lib/pick.h is its twin in the kernel. Nothing
// here reads a clock, makes randomness, or uses floating point on the pick path.
package algo

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxMembers is the largest number of members of a table.
const MaxMembers = 1<<16 - 1

// ErrTooMany is returned by Build for more than MaxMembers members.
var ErrTooMany = fmt.Errorf("more than %d backends", MaxMembers)

// ErrUnknown is wrapped by ByName for a name that is not registered.
var ErrUnknown = errors.New("unknown algorithm")

// Kind says how a Table is read. The values are shared with the kernel.
type Kind uint8

// The kinds.
const (
	None  Kind = iota // an empty table: nothing can be picked
	Rand              // by the input's random number
	Seq               // by the input's sequence number
	Hash              // by the input's hash
	Two               // of two at random, the one that costs less
	Least             // of all, the one that costs least
	Few               // of at most FewMembers from a random start, the one that costs least
)

// FewMembers is how many members Few compares.
const FewMembers = 16

// Cost says what Two, Least and Few compare. The values are shared with the
// kernel.
type Cost uint8

// The costs of a member with a connections, one more included, a latency of t
// and a factor of f.
const (
	NoCost Cost = iota
	Conns       // a * f
	Time        // t * a * f; t is rounded so that near ones are equal
)

// Table is what a dataplane needs to pick a member. Its zero value is empty.
type Table struct {
	Kind     Kind
	Cost     Cost     // Two, Least, Few: what is compared
	N        uint32   // members; a pick is in [0, N)
	Alias    []uint32 // Rand, Two: one alias word for each member, or nil for equal shares
	Order    []uint16 // Seq: the order of members, or nil for 0, 1, ... N-1; Hash: the owner of each place
	Factors  []uint32 // Two, Least, Few: see Cost, 0: only as a starter; nil: 1 for each member
	Starters []uint32 // Two, Least, Few: members in slow start, as chance<<16 | index; see Starter
}

// Member is one candidate of a table.
type Member struct {
	ID     uint64 // stable identity, the same on every node
	Weight uint16 // 0 is never picked
	Ramp   uint16 // how far its slow start is, in 1/65536; 0: it is not starting
}

// Input is everything a pick may depend on.
type Input struct {
	Rand [5]uint32 // uniformly random
	Seq  uint32    // a counter that grows by one with each pick of the table
	Hash uint32    // of what should always lead to the same member
	// Load returns what is known of a member; it may be nil if Table.Cost is NoCost.
	Load func(member int) Load
}

// Load is what is known of a member at the time of a pick.
type Load struct {
	Active  uint32 // connections that have not ended
	Latency uint32 // moving average, µs; 0: unknown
	Idle    uint32 // ms since Latency last changed and the member last got a connection
}

// Algorithm is a named way to build tables.
type Algorithm struct {
	Name  string
	Build func(ms []Member) Table
}

// table returns the table of algorithm a for ms; see Build.
func (a Algorithm) table(ms []Member) (Table, error) {
	if len(ms) > MaxMembers {
		return Table{}, ErrTooMany
	}
	if !slices.ContainsFunc(ms, func(m Member) bool { return m.Weight > 0 }) {
		return Table{}, nil
	}
	return a.Build(settled(ms)), nil
}

// Build returns the table of the named algorithm for ms. The order of ms is the
// order of indexes in the table. Members that all have weight 0 give an empty
// table. It returns ErrTooMany above MaxMembers, and an error that wraps
// ErrUnknown for a name that Names does not list.
func Build(name string, ms []Member) (Table, error) {
	a, err := byName(name)
	if err != nil {
		return Table{}, err
	}
	return a.table(ms)
}

// all is every algorithm. Another one that fits an existing kind needs one file
// and one line here.
var all = []Algorithm{random, roundRobin, hash, ipHash, powerOfTwo, leastConnection, leastTime}

// Names returns the names of all algorithms.
func Names() []string {
	names := make([]string, len(all))
	for i, a := range all {
		names[i] = a.Name
	}
	return names
}

// Check returns nil if name is a known algorithm.
func Check(name string) error {
	_, err := byName(name)
	return err
}

// ByID tells whether the named algorithm reads Member.ID: others build the same table
// without.
func ByID(name string) bool { return name == hash.Name || name == ipHash.Name }

// ByLoad tells whether the named algorithm compares loads: see Table.Cost.
func ByLoad(name string) bool {
	table, err := Build(name, []Member{{ID: 1, Weight: 1}, {ID: 2, Weight: 1}})
	return err == nil && table.Cost != NoCost
}

func byName(name string) (Algorithm, error) {
	i := slices.IndexFunc(all, func(a Algorithm) bool { return a.Name == name })
	if i < 0 {
		return Algorithm{}, fmt.Errorf("%w %q: want one of %s", ErrUnknown, name, strings.Join(Names(), ", "))
	}
	return all[i], nil
}
