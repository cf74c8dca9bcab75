// SPDX-License-Identifier: Apache-2.0

package iptables

import "strings"

// tally is how many rules chains have as they were put last, and how many lead to them.
type tally struct {
	rules map[string]int
	led   map[string]int      // rules of other chains that lead to a chain
	leads map[string][]string // where those of a chain lead
}

func newTally() *tally {
	return &tally{rules: map[string]int{}, led: map[string]int{}, leads: map[string][]string{}}
}

// put takes note of a chain that was written.
func (t *tally) put(c chain) {
	t.drop(c.name)
	t.rules[c.name] = len(c.rules)
	var to []string
	for _, rule := range c.rules {
		if name := target(rule); strings.HasPrefix(name, prefix) {
			to = append(to, name)
			t.led[name]++
		}
	}
	if to != nil {
		t.leads[c.name] = to
	}
}

// drop takes note of a chain that is gone.
func (t *tally) drop(name string) {
	for _, to := range t.leads[name] {
		if t.led[to]--; t.led[to] == 0 {
			delete(t.led, to)
		}
	}
	delete(t.leads, name)
	delete(t.rules, name)
}

// target returns the chain that a rule leads to, or what else is its target; empty: none.
func target(rule string) string {
	fields := strings.Fields(rule)
	for i := 0; i+1 < len(fields); i++ {
		if fields[i] == "-j" || fields[i] == "-g" {
			return fields[i+1]
		}
	}
	return ""
}
