// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"io"
	"slices"
	"strings"
)

// rule returns the jump as the programs print it.
func (j jump) rule() string {
	return strings.Join(append(slices.Clone(j.match), "-j", j.chain), " ")
}

// hook is a built-in chain of a table.
type hook struct {
	table   table
	builtin string
}

// hooks returns the built-in chains that jumps are in, those of a table together.
func hooks() []hook {
	var hs []hook
	for _, t := range tables {
		for _, j := range jumps {
			if h := (hook{j.table, j.builtin}); j.table == t && !slices.Contains(hs, h) {
				hs = append(hs, h)
			}
		}
	}
	return hs
}

// builtins returns all built-in chains of a table: another version may have had jumps
// elsewhere.
func (t table) builtins() []hook {
	names := []string{"INPUT", "FORWARD", "OUTPUT"}
	if t == natTable {
		names = []string{"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}
	}
	var hs []hook
	for _, n := range names {
		hs = append(hs, hook{t, n})
	}
	return hs
}

// wanted returns the jumps of a built-in chain, the first rule first.
func (h hook) wanted() []jump {
	var js []jump
	for _, j := range slices.Backward(jumps) {
		if j.table == h.table && j.builtin == h.builtin {
			js = append(js, j)
		}
	}
	return js
}

// ours returns the rules of a built-in chain that lead to chains of lbproxy's own.
func (r *runner) ours(h hook) ([]string, error) {
	lines, err := r.ipt.List(string(h.table), h.builtin)
	if err != nil {
		return nil, err
	}
	var rules []string
	for _, line := range lines {
		rule, ok := strings.CutPrefix(line, "-A "+h.builtin+" ")
		if !ok {
			continue
		}
		rule, _, _ = strings.Cut(rule, " -c ") // counters
		if leadsToOurs(rule) {
			rules = append(rules, rule)
		}
	}
	return rules, nil
}

// leadsToOurs tells whether the target of a rule is a chain of lbproxy's own.
func leadsToOurs(rule string) bool { return strings.HasPrefix(target(rule), prefix) }

// jumps returns the jumps that are not there.
func (r *runner) jumps(ctx context.Context) (missing []jump, err error) {
	for _, h := range hooks() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		have, err := r.ours(h)
		if err != nil {
			return nil, err
		}
		for _, j := range h.wanted() {
			if !slices.Contains(have, j.rule()) {
				missing = append(missing, j)
			}
		}
	}
	return missing, nil
}

// ensureJumps makes the jumps, which lead to chains that exist already, the first
// rules of their built-in chains. Where all of them are there in their order, nothing
// is changed: what somebody put before them since then is meant to be there. added
// counts the rules that were not there.
func (r *runner) ensureJumps(ctx context.Context) (added int, err error) {
	edits := map[table][]string{}
	for _, h := range hooks() {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		have, err := r.ours(h)
		if err != nil {
			return 0, err
		}
		have = withoutKept(have)
		var want []string
		for _, j := range h.wanted() {
			want = append(want, j.rule())
			if !slices.Contains(have, j.rule()) {
				added++
			}
		}
		if slices.Equal(have, want) {
			continue
		}
		for _, rule := range have {
			edits[h.table] = append(edits[h.table], "-D "+h.builtin+" "+rule)
		}
		for _, rule := range slices.Backward(want) {
			edits[h.table] = append(edits[h.table], "-I "+h.builtin+" "+rule)
		}
	}
	return added, r.edit(ctx, edits)
}

// removeJumps removes every rule of the built-in chains that leads to a chain of
// lbproxy's own.
func (r *runner) removeJumps(ctx context.Context) error {
	_, err := r.dropJumps(ctx, append(filterTable.builtins(), natTable.builtins()...))
	return err
}

// dropJumps removes them from some built-in chains, and counts them.
func (r *runner) dropJumps(ctx context.Context, from []hook) (removed int, err error) {
	edits := map[table][]string{}
	for _, h := range from {
		have, err := r.ours(h)
		if err != nil {
			return 0, err
		}
		for _, rule := range have {
			edits[h.table] = append(edits[h.table], "-D "+h.builtin+" "+rule)
			removed++
		}
	}
	return removed, r.edit(ctx, edits)
}

// edit changes single rules of built-in chains: each table wholly or not at all, so
// that no packet sees a jump missing that is only moved.
func (r *runner) edit(ctx context.Context, lines map[table][]string) error {
	if len(lines) == 0 {
		return nil
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	err := r.feed(ctx, func(w io.Writer) error {
		s := stringWriter{w: w}
		for _, t := range tables {
			if len(lines[t]) > 0 {
				s.write("*", string(t), "\n", strings.Join(lines[t], "\n"), "\nCOMMIT\n")
			}
		}
		return s.err
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.commits += uint32(len(lines))
	return nil
}
