// SPDX-License-Identifier: Apache-2.0

// Report turns results of upstream's tests into text.
//
//	report list JUNIT...   one line for each test that ran, to keep
//	report table DIR       docs/CONFORMANCE.md from the lists that were kept in DIR
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	switch {
	case len(args) > 1 && args[0] == "list":
		return list(out, args[1:])
	case len(args) == 2 && args[0] == "table":
		return table(out, os.DirFS(args[1]))
	}
	return errors.New("usage: report list JUNIT... | report table DIR")
}
