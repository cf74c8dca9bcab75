// SPDX-License-Identifier: Apache-2.0

package main

//go:generate go run . document ../..

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/config"
)

// documentVerb writes what is documented from the program itself. It is for make generate.
func (a *app) documentVerb() *cobra.Command {
	return &cobra.Command{
		Use:    "document DIR",
		Short:  "Write the manual pages, the schema of the configuration, and what else is made of its table, below the source's directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.entered = true
			return document(cmd.Root(), args[0])
		},
	}
}

// document writes everything below dir, which has lbproxy's source.
func document(root *cobra.Command, dir string) error {
	fields := config.New(algo.Names()...).Table()
	schema, err := config.Schema(fields)
	if err != nil {
		return fmt.Errorf("schema: %w", err)
	}
	docs := filepath.Join(dir, "docs")
	return errors.Join(
		os.WriteFile(filepath.Join(docs, "proxyconfiguration.schema.json"), schema, 0o644),
		os.WriteFile(filepath.Join(dir, reloadable), []byte(liveFields(fields)), 0o644),
		writeManual(root, filepath.Join(docs, "man")),
		replaceParts(filepath.Join(docs, "CONFIGURATION.md"), map[string]string{
			"fields":              config.Markdown(fields),
			"exit codes":          "```text\n" + exitStatus + "\n```\n",
			"kube-proxy's fields": config.MarkdownOfKubeProxyFields(),
			"kube-proxy's flags":  config.MarkdownOfKubeProxyFlags(),
		}),
	)
}

// reloadable is the file that tells the chart which fields need no new pods.
const reloadable = "deploy/chart/lbproxy/files/reloadable-fields"

// liveFields are the names of fields that a reload applies, one in each line.
func liveFields(fields []config.Field) string {
	var b strings.Builder
	for _, f := range fields {
		if f.Live {
			fmt.Fprintln(&b, f.Name)
		}
	}
	return b.String()
}

// writeManual writes one page for each command, and removes those of commands that are no
// more.
func writeManual(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "*.8"))
	if err != nil {
		return err
	}
	for _, page := range old {
		if err := os.Remove(page); err != nil {
			return err
		}
	}
	return writePages(root, dir)
}

func writePages(cmd *cobra.Command, dir string) error {
	err := os.WriteFile(filepath.Join(dir, manName(cmd)+".8"), []byte(manPage(cmd)), 0o644)
	for _, c := range cmd.Commands() {
		if documented(c) {
			err = errors.Join(err, writePages(c, dir))
		}
	}
	return err
}

// The lines between which a part of a document is generated.
const (
	partBegin = "<!-- generated: %s -->\n"
	partEnd   = "<!-- end of what is generated -->\n"
)

// replaceParts writes the generated parts of a document, by their names. Each one must be
// there.
func replaceParts(path string, parts map[string]string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text := string(content)
	for name, part := range parts {
		begin := fmt.Sprintf(partBegin, name)
		before, rest, ok := strings.Cut(text, begin)
		_, after, ends := strings.Cut(rest, partEnd)
		if !ok || !ends {
			return fmt.Errorf("%s: has no part %q", path, name)
		}
		text = before + begin + part + partEnd + after
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
