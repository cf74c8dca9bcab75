// SPDX-License-Identifier: Apache-2.0

package dataplane

import "github.com/lbproxy/lbproxy/internal/lb"

// RuleStats is what a dataplane with rules has counted in one family.
type RuleStats struct {
	Family   lb.Family
	Tables   []TableStats // sorted by name
	Failures uint64       // changes of rules that failed
	Ended    uint64       // entries of connection tracking that were deleted
}

// TableStats is the rules of one table in one family.
type TableStats struct {
	Name    string
	Rules   int // that belong to the dataplane
	Written int // by the last change
}
