// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"

	"github.com/lbproxy/lbproxy/internal/algo"
)

// maxTurns is how many turns a chain has at most.
const maxTurns = 64

// turns renders the order of the table: exactly, if it has few turns. Otherwise equal
// backends have turns within groups, which chance chooses, and others shares.
func (r *poolRenderer) turns() (approximation string) {
	n := int(r.table.Places())
	parts := r.parts(algo.Shares(r.table))
	switch {
	case n > maxTurns && r.table.Order != nil:
		return r.draws()
	case n > maxTurns:
		r.tree(r.name, parts, fanBits(n), 0, draw, takeTurns)
		return turnsInGroups()
	}
	turns := make([]part, n)
	for i := range turns {
		m := i
		if r.table.Order != nil {
			m = int(r.table.Order[i])
		}
		turns[i].end = r.to(m)
	}
	r.chains = []chain{{r.name, takeTurns(turns)}}
	return ""
}

// turnsInGroups says what is approximated where a pool has more backends than turns.
func turnsInGroups() string {
	return fmt.Sprintf("more than %d backends: new connections go to random groups of them, and take turns there", maxTurns)
}

// takeTurns renders turns in order: each rule takes one of as many connections as there
// are turns from it on, of those that the rules before left.
func takeTurns(turns []part) []string {
	rules := make([]string, len(turns))
	for i, turn := range turns {
		if left := len(turns) - i; left > 1 {
			rules[i] = fmt.Sprintf("-m statistic --mode nth --every %d --packet 0 ", left)
		}
		rules[i] += turn.end
	}
	return rules
}
