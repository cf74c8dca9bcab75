// SPDX-License-Identifier: Apache-2.0

// Package iptables is the dataplane for nodes that cannot run the eBPF one: it
// renders Services to chains of table nat, which iptables-restore applies, and to
// ipsets, which the constant rules of table filter read. See docs/ARCHITECTURE.md
// for the way of a packet through the chains.
package iptables

// table is a table of iptables.
type table string

// The tables in which lbproxy has chains.
const (
	natTable    table = "nat"
	filterTable table = "filter"
)

// chain is a chain of lbproxy's own and its rules in order. A rule is the text that
// iptables-restore reads behind "-A NAME ".
type chain struct {
	name  string
	rules []string
}

// batch is what one restore does in one table: all of it, or nothing.
type batch struct {
	put []chain  // created or emptied, then filled
	del []string // removed; nothing refers to them afterwards
}

// change is what one restore does in one family, by table.
type change map[table]*batch

// empty tells whether there is nothing to do.
func (c change) empty() bool {
	for _, b := range c {
		if len(b.put)+len(b.del) > 0 {
			return false
		}
	}
	return true
}
