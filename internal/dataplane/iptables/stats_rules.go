// SPDX-License-Identifier: Apache-2.0

package iptables

import "github.com/lbproxy/lbproxy/internal/dataplane"

// ruleCounts is what is counted of one family.
type ruleCounts struct {
	written  map[table]int // rules, by the last restore
	failures uint64        // restores
	ended    uint64        // flows
}

// restored counts a restore.
func (r *ruleCounts) restored(c change, err error) {
	if err != nil {
		r.failures++
		return
	}
	r.written = map[table]int{}
	for t, b := range c {
		for _, p := range b.put {
			r.written[t] += len(p.rules)
		}
	}
}

// rules returns what is counted of each family. Rules in chains that an earlier agent
// left, and that were not written yet, are not known.
func (d *Dataplane) rules() []dataplane.RuleStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []dataplane.RuleStats
	for _, f := range families {
		fam := d.families[f]
		if fam == nil {
			continue
		}
		st := dataplane.RuleStats{Family: f, Failures: fam.counted.failures, Ended: fam.counted.ended}
		for _, t := range tables { // sorted
			ts := dataplane.TableStats{Name: string(t), Written: fam.counted.written[t]}
			for _, s := range fam.chains[t] {
				ts.Rules += s.rules()
			}
			st.Tables = append(st.Tables, ts)
		}
		out = append(out, st)
	}
	return out
}
