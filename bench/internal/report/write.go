// SPDX-License-Identifier: Apache-2.0

package report

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lbproxy/lbproxy/bench/result"
)

// Write makes a page and the tables of a Markdown file of results. A name that is empty is
// not written. Of a Markdown file that is there, what is between markers is replaced.
func Write(names []string, pageName, markdownName string) error {
	if len(names) == 0 {
		return errors.New("report: no results: name at least one file")
	}
	var files []*result.File
	var beside []string
	for _, name := range names {
		f, err := result.Read(name)
		if err != nil {
			return err
		}
		files = append(files, f)
		at, err := filepath.Rel(filepath.Dir(pageName), name)
		if err != nil {
			at = filepath.Base(name)
		}
		beside = append(beside, at)
	}
	if pageName != "" {
		text, err := html(beside, files)
		if err != nil {
			return err
		}
		if err := os.WriteFile(pageName, text, 0o644); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	if markdownName == "" {
		return nil
	}
	return updateMarkdown(markdownName, files)
}
