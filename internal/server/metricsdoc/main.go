// SPDX-License-Identifier: Apache-2.0

// Metricsdoc writes docs/METRICS.md to the file that it is given.
package main

import (
	"fmt"
	"os"

	"github.com/lbproxy/lbproxy/internal/server"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: metricsdoc FILE")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], server.Markdown(), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "metricsdoc:", err)
		os.Exit(1)
	}
}
