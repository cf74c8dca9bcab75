// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// tables are those in which lbproxy has chains, in the order in which they are changed.
var tables = []table{filterTable, natTable}

// constantChains are those that are there whatever the Services are.
var constantChains = map[table]map[string]bool{
	natTable: {
		servicesChain: true, nodePortsChain: true, masqueradeChain: true,
		offClusterChain: true, postroutingChain: true,
	},
	filterTable: {filterChain: true, refuseChain: true, forwardChain: true, inputChain: true, nodePortsChain: true},
}

// valid refuses names of chains that are not lbproxy's own, and rules of several lines.
func (c change) valid() error {
	for t, b := range c {
		if t != natTable && t != filterTable {
			return fmt.Errorf("table %s is not lbproxy's to change", t)
		}
		for _, name := range b.del {
			if err := validName(name); err != nil {
				return err
			}
		}
		for _, p := range b.put {
			if err := validName(p.name); err != nil {
				return err
			}
			for _, rule := range p.rules {
				if strings.ContainsAny(rule, "\n\x00") {
					return fmt.Errorf("chain %s: rule %q is not one line", p.name, rule)
				}
			}
		}
	}
	return nil
}

func validName(name string) error {
	if !strings.HasPrefix(name, prefix) || strings.ContainsAny(name, " \n\x00") || len(name) > 28 {
		return fmt.Errorf("chain %q is not lbproxy's to change", name)
	}
	return nil
}

// listedChains is how many chains a table's change has at least for which it is worth to
// list the table first. With less, what is looked for is quickly found, and the chains that
// the table has besides need not be read.
const listedChains = 4000

// render writes c as iptables-restore reads it. list says whether tables with many
// changes are listed first: iptables-nft-restore (1.8.9) looks for each chain that it is
// told of in a sorted list, from its begin, unless a command before concerned all chains.
// What it lists is read by nobody.
func (c change) render(w io.Writer, list bool) error {
	for _, t := range tables {
		b := c[t]
		if b == nil || len(b.put)+len(b.del) == 0 {
			continue
		}
		if err := b.render(w, t, list && len(b.put)+len(b.del) >= listedChains); err != nil {
			return err
		}
	}
	return nil
}

// render writes one table: every chain is created or emptied first, so that rules may
// refer to chains behind their own, and chains may go that others referred to. They are
// declared by name, the last one first: iptables-nft-restore looks for the place of each
// in a sorted list, from its begin.
func (b *batch) render(w io.Writer, t table, list bool) error {
	names := slices.Clone(b.del)
	for _, p := range b.put {
		names = append(names, p.name)
	}
	slices.Sort(names)
	s := stringWriter{w: w}
	s.write("*", string(t), "\n")
	if list {
		s.write("-S\n")
	}
	for _, name := range slices.Backward(names) {
		s.write(":", name, " - [0:0]\n")
	}
	for _, p := range b.put {
		for _, rule := range p.rules {
			s.write("-A ", p.name, " ", rule, "\n")
		}
	}
	for _, name := range b.del {
		s.write("-X ", name, "\n")
	}
	s.write("COMMIT\n")
	return s.err
}

// stringWriter keeps the first error.
type stringWriter struct {
	w   io.Writer
	err error
}

func (s *stringWriter) write(parts ...string) {
	for _, p := range parts {
		if s.err == nil {
			_, s.err = io.WriteString(s.w, p)
		}
	}
}

// chains returns every chain of lbproxy's own with its rules as the save program
// prints them behind "-A NAME ".
func (r *runner) chains(ctx context.Context, t table) (map[string][]string, error) {
	got := map[string][]string{}
	err := r.save(ctx, t, func(line string) {
		name, rules, ok := parseSaved(line)
		if !ok || !strings.HasPrefix(name, prefix) {
			return
		}
		got[name] = append(got[name], rules...)
	})
	return got, err
}

// names returns the names of lbproxy's own chains. Nftables tells them without the rules; if
// it does not, for the tables change all the time, the save program does.
func (r *runner) names(ctx context.Context, t table) ([]string, error) {
	if r.kind == nftBackend {
		if names, err := r.namesNFT(t); err == nil {
			return names, nil
		}
	}
	chains, err := r.chains(ctx, t)
	return slices.Collect(maps.Keys(chains)), err
}

func (r *runner) namesNFT(t table) (names []string, err error) {
	kernel, err := openNFT()
	if err != nil {
		return nil, err
	}
	chains, err := kernel.uses(r.family)
	for name := range chains[t] {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names, errors.Join(err, kernel.close())
}

// parseSaved reads a line that declares a chain, or one that is a rule of a chain.
func parseSaved(line string) (name string, rules []string, ok bool) {
	if rest, found := strings.CutPrefix(line, ":"); found {
		name, _, ok = strings.Cut(rest, " ")
		return name, nil, ok
	}
	rest, found := strings.CutPrefix(line, "-A ")
	if !found {
		return "", nil, false
	}
	name, rule, _ := strings.Cut(rest, " ")
	return name, []string{rule}, true
}

// save hands every line of a table to each.
func (r *runner) save(ctx context.Context, t table, each func(string)) error {
	return saveLines(ctx, r.saveProgram, t, each)
}

func saveLines(ctx context.Context, program string, t table, each func(string)) error {
	cmd := exec.CommandContext(ctx, program, "-t", string(t))
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr tail
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(make([]byte, 0, 1<<16), 1<<20)
	for lines.Scan() {
		each(lines.Text())
	}
	errRead := lines.Err()
	if errRead != nil {
		_, _ = io.Copy(io.Discard, out) // so that the program can end
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%s -t %s: %w: %s", program, t, err, strings.TrimSpace(stderr.String()))
	}
	if errRead != nil {
		return fmt.Errorf("%s -t %s: read: %w", program, t, errRead)
	}
	return nil
}
