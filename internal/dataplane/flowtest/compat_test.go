// SPDX-License-Identifier: Apache-2.0

package flowtest_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/dataplane/flowtest"
)

const repo = "../../.."

// compatRow is one line of a table of docs/COMPATIBILITY.md.
type compatRow struct {
	line  int
	cells []string
}

// readCompat returns the rows of all tables, and the ids of the differences.
func readCompat(t *testing.T) (rows []compatRow, differences []string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(repo, "docs", "COMPATIBILITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	difference := regexp.MustCompile(`^\* \*\*([a-z0-9-]+)\*\*: .+`)
	for i, line := range strings.Split(string(data), "\n") {
		if m := difference.FindStringSubmatch(line); m != nil {
			differences = append(differences, m[1])
		}
		inner, ok := strings.CutPrefix(line, "| ")
		if !ok || strings.HasPrefix(line, "| behaviour |") {
			continue
		}
		var cells []string
		for _, c := range strings.Split(strings.TrimSuffix(inner, "|"), "|") {
			cells = append(cells, strings.TrimSpace(c))
		}
		rows = append(rows, compatRow{i + 1, cells})
	}
	return rows, differences
}

// goTests returns the names of all tests in the repository.
func goTests(t *testing.T) map[string]bool {
	t.Helper()
	names, head := map[string]bool{}, regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	for _, dir := range []string{"internal", "cmd", "test"} {
		err := filepath.WalkDir(filepath.Join(repo, dir), func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			for _, m := range head.FindAllSubmatch(data, -1) {
				names[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}

// proofs returns every name that a table may cite.
func proofs(t *testing.T) map[string]bool {
	t.Helper()
	known := goTests(t)
	for _, r := range flowtest.Rules() {
		known["flow: "+r.Name] = true
		for _, row := range r.Rows {
			known["flow: "+r.Name+" / "+row.Name] = true
		}
	}
	for _, tr := range flowtest.Transitions() {
		known["transition: "+tr.Name] = true
	}
	for _, name := range dptest.Names() {
		known["contract: "+name] = true
	}
	return known
}

// TestCompatibility checks docs/COMPATIBILITY.md: every row is whole, cites what exists,
// or says that something is missing; every difference of a flow is explained.
func TestCompatibility(t *testing.T) {
	const columns, least = 6, 60
	rows, differences := readCompat(t)
	if len(rows) < least {
		t.Errorf("%d rows, want %d or more", len(rows), least)
	}
	known, cited := proofs(t), regexp.MustCompile("`([^`]+)`")
	mentioned := regexp.MustCompile(`\[D: ([^\]]+)\]`)
	said := map[string]bool{}
	for _, row := range rows {
		if len(row.cells) != columns {
			t.Errorf("line %d: %d columns, want %d", row.line, len(row.cells), columns)
			continue
		}
		if slices.Contains(row.cells, "") || slices.Contains(row.cells, "?") {
			t.Errorf("line %d: an empty cell", row.line)
		}
		proof, mine := row.cells[columns-1], row.cells[3:columns-1]
		names := cited.FindAllStringSubmatch(proof, -1)
		for _, m := range names {
			if !known[m[1]] {
				t.Errorf("line %d: no test and no row is called %q", row.line, m[1])
			}
		}
		there := func(cell string) bool { return !strings.HasPrefix(strings.TrimPrefix(cell, "as eBPF: "), "missing") }
		if len(names) == 0 && slices.ContainsFunc(mine, there) && !strings.HasPrefix(proof, "-") {
			t.Errorf("line %d: no proof, and not all is missing", row.line)
		}
		for _, m := range mentioned.FindAllStringSubmatch(strings.Join(mine, " "), -1) {
			for id := range strings.SplitSeq(m[1], ", ") {
				said[id] = true
			}
		}
	}
	for id := range said {
		if !slices.Contains(differences, id) {
			t.Errorf("the difference %q is not explained", id)
		}
	}
	for _, id := range differences {
		if !said[id] {
			t.Errorf("no row has the difference %q", id)
		}
	}
	for _, d := range flowtest.Differences() {
		if !said[d.ID] {
			t.Errorf("rows of the flow table have the difference %q, the document has not", d.ID)
		}
	}
	checkRulesAreCited(t, rows)
}

// checkRulesAreCited fails if a rule of the flow table proves nothing that is listed.
func checkRulesAreCited(t *testing.T, rows []compatRow) {
	t.Helper()
	var all strings.Builder
	for _, row := range rows {
		all.WriteString(row.cells[len(row.cells)-1])
	}
	for _, r := range flowtest.Rules() {
		if !strings.Contains(all.String(), "flow: "+r.Name+"`") && !strings.Contains(all.String(), "flow: "+r.Name+" / ") {
			t.Errorf("no row cites the rule %q", r.Name)
		}
	}
}
