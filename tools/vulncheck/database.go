// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// entry is what the index needs of a vulnerability in the OSV format.
type entry struct {
	ID        string    `json:"id"`
	Modified  time.Time `json:"modified"` // zero in the module: its server knows
	Published time.Time `json:"published"`
	Aliases   []string  `json:"aliases,omitempty"`
	Affected  []struct {
		Module struct {
			Path string `json:"name"`
		} `json:"package"`
		Ranges []struct {
			Events []struct {
				Introduced string `json:"introduced"`
				Fixed      string `json:"fixed"`
			} `json:"events"`
		} `json:"ranges"`
	} `json:"affected"`
}

type (
	vuln struct {
		ID       string    `json:"id"`
		Modified time.Time `json:"modified"`
		Aliases  []string  `json:"aliases,omitempty"`
	}
	moduleVuln struct {
		ID       string    `json:"id"`
		Modified time.Time `json:"modified"`
		Fixed    string    `json:"fixed,omitempty"` // empty: not in the latest version
	}
	module struct {
		Path  string       `json:"path"`
		Vulns []moduleVuln `json:"vulns"`
	}
)

// build writes a database of the vulnerabilities in the directory osv, one file each, below
// the directory out. Source: go.dev/doc/security/vuln/database, version 1.
func build(osv, out string, w io.Writer) error {
	files, err := filepath.Glob(filepath.Join(osv, "*.json"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%s: has no vulnerability", osv)
	}
	for _, dir := range []string{"ID", "index"} {
		if err := os.MkdirAll(filepath.Join(out, dir), 0o755); err != nil {
			return err
		}
	}
	var latest time.Time
	var vulns []vuln
	modules := map[string]*module{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var e entry
		if err := json.Unmarshal(text, &e); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if e.ID+".json" != filepath.Base(file) {
			return fmt.Errorf("%s: is of %q", file, e.ID)
		}
		if err := os.WriteFile(filepath.Join(out, "ID", e.ID+".json"), text, 0o644); err != nil {
			return err
		}
		vulns = append(vulns, vuln{e.ID, e.Modified, e.Aliases})
		e.list(modules)
		for _, at := range []time.Time{e.Modified, e.Published} {
			if at.After(latest) {
				latest = at
			}
		}
	}
	all := make([]*module, 0, len(modules))
	for _, m := range modules {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *module) int { return strings.Compare(a.Path, b.Path) })
	fmt.Fprintf(w, "%d vulnerabilities of %d modules\n", len(vulns), len(all))
	return errors.Join(
		write(out, "db", map[string]time.Time{"modified": latest}),
		write(out, "vulns", vulns),
		write(out, "modules", all))
}

// list adds e to its modules, once to each.
func (e entry) list(modules map[string]*module) {
	for _, a := range e.Affected {
		m := modules[a.Module.Path]
		if m == nil {
			m = &module{Path: a.Module.Path}
			modules[m.Path] = m
		}
		fixed := ""
		for _, r := range a.Ranges {
			for _, ev := range r.Events { // in the order of versions: the last one counts
				fixed = ev.Fixed
			}
		}
		if n := len(m.Vulns); n > 0 && m.Vulns[n-1].ID == e.ID {
			m.Vulns[n-1].Fixed = "" // several ranges: govulncheck looks at the vulnerability itself
			continue
		}
		m.Vulns = append(m.Vulns, moduleVuln{e.ID, e.Modified, fixed})
	}
}

func write(out, name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "index", name+".json"), text, 0o644)
}
