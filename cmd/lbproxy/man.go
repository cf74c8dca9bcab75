// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manName returns the name of a command's manual page: lbproxy-get-services.
func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage returns the manual page of a command, of what its help is made of.
func manPage(cmd *cobra.Command) string {
	var b strings.Builder
	section := func(title, text string) {
		if text != "" {
			fmt.Fprintf(&b, ".SH %s\n%s\n", title, text)
		}
	}
	fmt.Fprintf(&b, ".TH %q 8 \"\" lbproxy \"lbproxy manual\"\n", strings.ToUpper(manName(cmd)))
	section("NAME", roff(manName(cmd))+` \- `+roff(cmd.Short))
	section("SYNOPSIS", `\fB`+roff(cmd.UseLine())+`\fR`)
	section("DESCRIPTION", paragraphs(cmd.Long))
	section("COMMANDS", commands(cmd))
	section("OPTIONS", options(cmd.NonInheritedFlags()))
	section("EXIT STATUS", preformatted(exitStatus))
	section("EXAMPLES", preformatted(unindent(cmd.Example)))
	section("SEE ALSO", related(cmd))
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// roff returns text that is not taken for a request.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		return `\&` + text
	}
	return text
}

// lines applies roff to each line.
func lines(text string) string {
	all := strings.Split(text, "\n")
	for i, line := range all {
		all[i] = roff(line)
	}
	return strings.Join(all, "\n")
}

// paragraphs returns text with a request between paragraphs; indented ones stay as they are.
func paragraphs(text string) string {
	if text == "" {
		return ""
	}
	all := strings.Split(text, "\n\n")
	for i, p := range all {
		all[i] = lines(p)
		if head, list, ok := strings.Cut(p, ":\n  "); ok { // the list of exit codes
			all[i] = lines(head) + ":\n" + preformatted(unindent("  "+list))
		}
	}
	return strings.Join(all, "\n.PP\n")
}

func preformatted(text string) string {
	if text == "" {
		return ""
	}
	return ".nf\n" + lines(text) + "\n.fi"
}

// unindent undoes indent.
func unindent(text string) string {
	return strings.ReplaceAll("\n"+text, "\n  ", "\n")[1:]
}

func commands(cmd *cobra.Command) string {
	var b strings.Builder
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			fmt.Fprintf(&b, ".TP\n\\fB%s\\fR\n%s\n", roff(c.Name()), roff(c.Short))
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

// options lists flags, sorted.
func options(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if f.NoOptDefVal == "" {
			name += " " + f.Value.Type()
		}
		usage := f.Usage
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(&b, ".TP\n\\fB%s\\fR\n%s\n", roff(name), roff(usage))
	})
	return strings.TrimRight(b.String(), "\n")
}

// related returns the pages of a command's parent and parts.
func related(cmd *cobra.Command) string {
	var names []string
	if cmd.HasParent() {
		names = append(names, manName(cmd.Parent()))
	}
	for _, c := range cmd.Commands() {
		if documented(c) {
			names = append(names, manName(c))
		}
	}
	for i, name := range names {
		names[i] = `\fB` + roff(name) + `\fR(8)`
	}
	return strings.Join(names, ",\n")
}

// documented tells whether a command has a manual page of its own.
func documented(cmd *cobra.Command) bool {
	return cmd.IsAvailableCommand() && cmd.Name() != "completion" && cmd.Name() != "help"
}
