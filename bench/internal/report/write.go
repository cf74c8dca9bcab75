// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lbproxy/lbproxy/bench/result"
)

// Options say what is made of which results. Lists have commas; what is empty is not made.
type Options struct {
	Results  string // files
	Page     string
	Markdown string // files; what is between markers is replaced
	Compact  string // a file for the results in short, and for what the simulator predicts
}

// Write makes a page and tables of results.
func Write(o Options) error {
	var files []*result.File
	var beside []string
	for _, name := range strings.Split(o.Results, ",") {
		f, err := result.Read(name)
		if err != nil {
			return err
		}
		if err := simulate(f); err != nil {
			return fmt.Errorf("report: %s: %w", name, err)
		}
		files = append(files, f)
		at, err := filepath.Rel(filepath.Dir(o.Page), name)
		if err != nil {
			at = filepath.Base(name)
		}
		beside = append(beside, at)
	}
	if o.Compact != "" {
		if err := compact(o.Compact, files); err != nil {
			return err
		}
	}
	if o.Page != "" {
		text, err := html(beside, files)
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.Page, text, 0o644); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	for _, name := range strings.Split(o.Markdown, ",") {
		if name == "" {
			continue
		}
		if err := updateMarkdown(name, files); err != nil {
			return err
		}
	}
	return nil
}
