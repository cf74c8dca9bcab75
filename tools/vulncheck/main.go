// SPDX-License-Identifier: Apache-2.0

// Vulncheck is what hack/vulncheck.sh needs around govulncheck.
//
//	vulncheck database OSV-DIRECTORY DATABASE-DIRECTORY
//	vulncheck judge < govulncheck's JSON
//
// The first turns what the Go module golang.org/x/vulndb has into a database: the server
// that govulncheck asks by itself cannot be reached from everywhere that the module proxy
// can. The second fails for what this repository can mend: vulnerable code of a module.
// That of the standard library depends on the Go that builds, and is told.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
)

// stdlib is what the standard library is called as a module.
const stdlib = "stdlib"

func main() {
	err := errors.New("usage: vulncheck database OSV-DIRECTORY DATABASE-DIRECTORY, or vulncheck judge")
	switch {
	case len(os.Args) == 4 && os.Args[1] == "database":
		err = build(os.Args[2], os.Args[3], os.Stdout)
	case len(os.Args) == 2 && os.Args[1] == "judge":
		err = judge(os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vulncheck:", err)
		os.Exit(1)
	}
}

// message is one of govulncheck's, as far as it matters here.
type message struct {
	Config  *struct{} `json:"config"`
	Finding *struct {
		OSV          string `json:"osv"`
		FixedVersion string `json:"fixed_version"`
		Trace        []struct{ Module, Version, Package, Function string }
	} `json:"finding"`
}

// judge prints what is called that is vulnerable, and returns an error if that is in a
// module, or if there is no report.
func judge(r io.Reader, w io.Writer) error {
	said := map[string]bool{}
	ours, scanned := 0, false
	for dec := json.NewDecoder(r); ; {
		var m message
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("govulncheck's report: %w", err)
		}
		if m.Config != nil {
			scanned = true
		}
		f := m.Finding
		if f == nil || len(f.Trace) == 0 || f.Trace[0].Function == "" { // that is in the program, and not only required
			continue
		}
		at := f.Trace[0]
		line := fmt.Sprintf("%s %s %s, fixed in %s: https://pkg.go.dev/vuln/%s", f.OSV, at.Module, at.Version, f.FixedVersion, f.OSV)
		if !said[line] && at.Module != stdlib {
			ours++
		}
		said[line] = true
	}
	for _, line := range slices.Sorted(maps.Keys(said)) {
		fmt.Fprintln(w, line)
	}
	switch {
	case !scanned:
		return errors.New("govulncheck reported nothing")
	case ours > 0:
		return fmt.Errorf("%d vulnerabilities are in modules that go.mod requires: update them", ours)
	case len(said) > 0:
		fmt.Fprintf(w, "%d vulnerabilities are in the standard library: build with a newer Go\n", len(said))
	}
	return nil
}
