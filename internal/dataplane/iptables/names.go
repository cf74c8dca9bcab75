// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// prefix begins the names of all chains and ipsets of lbproxy's own.
const prefix = "LBP-"

// The chains that are always there. See docs/ARCHITECTURE.md for who calls whom.
const (
	servicesChain    = "LBP-SERVICES"    // nat: finds the frontend
	nodePortsChain   = "LBP-NODEPORTS"   // nat: finds the node port; filter: refuses those without endpoints
	masqueradeChain  = "LBP-MASQ"        // nat: the connection is to be masqueraded
	offClusterChain  = "LBP-OFF"         // nat: it is, unless the caller is a pod
	postroutingChain = "LBP-POSTROUTING" // nat: masquerades
	filterChain      = "LBP-FILTER"      // filter: refuses and drops new connections that nobody took
	refuseChain      = "LBP-REFUSE"      // filter: refuses at once
	forwardChain     = "LBP-FORWARD"     // filter: lets pass what is balanced
	inputChain       = "LBP-INPUT"       // filter: guards 127.0.0.0/8, and lets who asks for health in
)

// The ipsets that are always there, without the suffix of their family: see setName.
const (
	vipsSet           = "LBP-VIPS"     // hash:ip: cluster IPs
	rejectSet         = "LBP-REJECT"   // hash:ip,port: frontends without endpoints
	dropSet           = "LBP-DROP"     // hash:ip,port: frontends where silence is the answer
	rangedSet         = "LBP-RANGED"   // hash:ip,port: frontends with source ranges and without endpoints
	rangesSet         = "LBP-RANGES"   // hash:ip,port,net: who may use which frontend
	nodePortRejectSet = "LBP-NPREJECT" // hash:net,port: node ports without endpoints
	nodePortDropSet   = "LBP-NPDROP"   // hash:net,port: node ports where silence is the answer
	healthSet         = "LBP-HEALTH"   // hash:net,port: healthCheckNodePorts
)

// setName returns the name of one of the constant ipsets for a family.
func setName(set string, f lb.Family) string {
	if f == lb.IPv6 {
		return set + "-6"
	}
	return set + "-4"
}

// hashName returns prefix and kind, followed by 64 bits of a hash of parts in
// hexadecimal digits: at most 28 characters, as many as iptables allows.
func hashName(kind string, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return prefix + kind + hex.EncodeToString(sum[:8])
}

// jump is a rule in a built-in chain that leads to a chain of lbproxy's own.
type jump struct {
	table   table
	builtin string
	chain   string
	match   []string // arguments of the rule before -j
}

// jumps are all of them, the same in both families. Each is the first rule of its
// built-in chain, the last of this list above the others.
var jumps = []jump{
	{natTable, "PREROUTING", servicesChain, nil},
	{natTable, "OUTPUT", servicesChain, nil},
	{natTable, "POSTROUTING", postroutingChain, nil},
	{filterTable, "FORWARD", forwardChain, nil}, // which leads to filterChain
	{filterTable, "INPUT", filterChain, []string{"-m", "conntrack", "--ctstate", "NEW"}},
	{filterTable, "OUTPUT", filterChain, []string{"-m", "conntrack", "--ctstate", "NEW"}},
	{filterTable, "INPUT", inputChain, nil},
}
