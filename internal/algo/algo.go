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
	None Kind = iota // an empty table: nothing can be picked
	Rand             // by the input's random number
	Seq              // by the input's sequence number
)

// Table is what a dataplane needs to pick a member. Its zero value is empty.
type Table struct {
	Kind  Kind
	N     uint32   // members; a pick is in [0, N)
	Alias []uint32 // Rand: one alias word for each member, or nil for equal shares
	Order []uint16 // Seq: the order of members, or nil for 0, 1, ... N-1
}

// Member is one candidate of a table.
type Member struct {
	ID     uint64 // stable identity, the same on every node
	Weight uint16 // 0 is never picked
}

// Input is everything a pick may depend on.
type Input struct {
	Rand [2]uint32 // uniformly random
	Seq  uint32    // a counter that grows by one with each pick of the table
}

// Algorithm is a named way to build tables.
type Algorithm struct {
	Name  string
	Build func(ms []Member) Table
}

// Build returns the table of algorithm a for ms. The order of ms is the order
// of indexes in the table. It returns ErrTooMany above MaxMembers. A table of
// members that all have weight 0 is empty.
func (a Algorithm) table(ms []Member) (Table, error) {
	if len(ms) > MaxMembers {
		return Table{}, ErrTooMany
	}
	if !slices.ContainsFunc(ms, func(m Member) bool { return m.Weight > 0 }) {
		return Table{}, nil
	}
	return a.Build(ms), nil
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
var all = []Algorithm{random, roundRobin}

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

func byName(name string) (Algorithm, error) {
	i := slices.IndexFunc(all, func(a Algorithm) bool { return a.Name == name })
	if i < 0 {
		return Algorithm{}, fmt.Errorf("%w %q: want one of %s", ErrUnknown, name, strings.Join(Names(), ", "))
	}
	return all[i], nil
}

// Pick returns the index of the member that in chooses from t, in [0, t.N), or
// -1 if t is empty.
func Pick(t Table, in Input) int {
	if t.N == 0 {
		return -1
	}
	switch t.Kind {
	case Rand:
		i := scale(in.Rand[0], t.N)
		if t.Alias == nil {
			return int(i)
		}
		return int(aliased(i, t.Alias[i], in.Rand[1]))
	case Seq:
		if t.Order == nil {
			return int(in.Seq % t.N)
		}
		return int(t.Order[in.Seq%uint32(len(t.Order))])
	}
	return -1
}

// scale maps a uniform 32-bit number onto [0, n).
func scale(rand, n uint32) uint32 {
	return uint32(uint64(rand) * uint64(n) >> 32)
}
