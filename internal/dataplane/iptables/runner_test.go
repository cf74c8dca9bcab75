// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lb"
)

func TestRenderChange(t *testing.T) {
	c := change{
		natTable: {
			put: []chain{{"LBP-B", []string{"-j LBP-A", "-j RETURN"}}, {"LBP-A", nil}},
			del: []string{"LBP-C"},
		},
		filterTable: {del: []string{"LBP-X"}},
	}
	var b strings.Builder
	if err := c.render(&b, true); err != nil {
		t.Fatal(err)
	}
	want := "*filter\n:LBP-X - [0:0]\n-X LBP-X\nCOMMIT\n" +
		"*nat\n:LBP-C - [0:0]\n:LBP-B - [0:0]\n:LBP-A - [0:0]\n-A LBP-B -j LBP-A\n-A LBP-B -j RETURN\n-X LBP-C\nCOMMIT\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// TestRenderManyChains: only what is slow otherwise lists the table.
func TestRenderManyChains(t *testing.T) {
	for _, row := range []struct {
		chains int
		list   bool
		want   bool
	}{{listedChains - 1, true, false}, {listedChains, true, true}, {listedChains, false, false}} {
		c := change{natTable: {put: make([]chain, row.chains)}}
		for i := range row.chains {
			c[natTable].put[i].name = fmt.Sprintf("LBP-%d", i)
		}
		var b strings.Builder
		if err := c.render(&b, row.list); err != nil {
			t.Fatal(err)
		}
		if got := strings.HasPrefix(b.String(), "*nat\n-S\n:"); got != row.want {
			t.Errorf("%d chains, list %t: the table is listed: %t, want %t", row.chains, row.list, got, row.want)
		}
	}
}

// TestInvalidChanges: whatever is rendered, no chain of others is written.
func TestInvalidChanges(t *testing.T) {
	for name, c := range map[string]change{
		"chain of others":                  {natTable: {put: []chain{{"KUBE-SERVICES", nil}}}},
		"built-in chain":                   {filterTable: {del: []string{"INPUT"}}},
		"table of others":                  {"mangle": {put: []chain{{"LBP-A", nil}}}},
		"rule of two lines":                {natTable: {put: []chain{{"LBP-A", []string{"-j RETURN\n-F INPUT"}}}}},
		"name of two words":                {natTable: {del: []string{"LBP-A -j"}}},
		"name that iptables does not take": {natTable: {del: []string{"LBP-" + strings.Repeat("x", 25)}}},
	} {
		if err := c.valid(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestChooseBackend(t *testing.T) {
	in := func(hint string, rules int) use { return use{installed: true, hint: hint, rules: rules} }
	for _, tc := range []struct {
		name        string
		nft, legacy use
		plain, want string
	}{
		{"nothing installed", use{}, use{}, "", ""},
		{"kubelet uses nft", in("KUBE-IPTABLES-HINT", 0), in("", 100), "legacy", "nft"},
		{"kubelet uses legacy", in("", 100), in("KUBE-KUBELET-CANARY", 0), "nft", "legacy"},
		{"kubelet's both", in("KUBE-IPTABLES-HINT", 0), in("KUBE-KUBELET-CANARY", 9), "legacy", "nft"},
		{"more nft rules", in("", 2), in("", 1), "legacy", "nft"},
		{"more legacy rules", in("", 1), in("", 2), "nft", "legacy"},
		{"no rules", in("", 0), in("", 0), "legacy", "legacy"},
		{"no plain program", in("", 0), in("", 0), "", "nft"},
		{"legacy only", use{}, in("", 0), "", "legacy"},
	} {
		got, err := choose(tc.nft, tc.legacy, tc.plain)
		if got.backend != tc.want || (err != nil) != (tc.want == "") || err == nil && got.why == "" {
			t.Errorf("%s: got %q (%s), error %v, want %q", tc.name, got.backend, got.why, err, tc.want)
		}
	}
	if _, err := chooseBackend("nftables"); err == nil {
		t.Error("an unknown backend is no error")
	}
}

func TestParseVersion(t *testing.T) {
	for in, want := range map[string][2]string{
		"iptables v1.8.9 (nf_tables)\n": {"1.8.9", "nft"},
		"ip6tables v1.8.11 (legacy)\n":  {"1.8.11", "legacy"},
		"iptables v1.6.2\n":             {"1.6.2", "legacy"},
		"BusyBox":                       {"", ""},
	} {
		version, backend, err := parseVersion(in)
		if got := [2]string{version, backend}; got != want || (err != nil) != (version == "") {
			t.Errorf("%q: got %q, error %v, want %q", in, got, err, want)
		}
	}
}

// program writes a shell script that answers --version.
func program(t *testing.T, dir, name, version string) {
	t.Helper()
	err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho '"+version+"'\n"), 0o755)
	if err != nil {
		t.Fatal(err)
	}
}

// TestFindPrograms: the plain programs are used if they are of the backend, and errors
// name what is missing.
func TestFindPrograms(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := newRunner(lb.IPv4, "auto", runnerOptions{}); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("nothing installed: got %v", err)
	}
	for _, name := range []string{"iptables", "iptables-restore", "iptables-save"} {
		program(t, dir, name, "iptables v1.8.11 (nf_tables)")
	}
	p, err := findPrograms(lb.IPv4, nftBackend)
	if err != nil || p.restoreProgram != filepath.Join(dir, "iptables-restore") || p.version != "1.8.11" {
		t.Errorf("plain programs: got %+v, error %v", p, err)
	}
	_, err = findPrograms(lb.IPv4, legacyBackend)
	if err == nil || !strings.Contains(err.Error(), "iptables-legacy is not installed") ||
		!strings.Contains(err.Error(), "is of the nft backend") {
		t.Errorf("other backend: got %v", err)
	}
	_, err = findPrograms(lb.IPv6, nftBackend)
	if err == nil || !strings.Contains(err.Error(), "ip6tables is not installed") {
		t.Errorf("other family: got %v", err)
	}
	program(t, dir, "iptables-nft", "iptables v1.8.12 (nf_tables)")
	p, err = findPrograms(lb.IPv4, nftBackend)
	if err != nil || p.version != "1.8.11" {
		t.Errorf("a backend's own programs are not complete: got %+v, error %v", p, err)
	}
}

func TestRestoreError(t *testing.T) {
	render := func(w io.Writer) error {
		_, err := io.WriteString(w, "*nat\n:LBP-A - [0:0]\n-A LBP-A -j NOPE\nCOMMIT\n")
		return err
	}
	cause := errors.New("exit status 2")
	for said, want := range map[string]string{
		"iptables-restore v1.8.9 (legacy): Couldn't load target `NOPE':No such file or directory\n\n" +
			"Error occurred at line: 3\nTry `iptables-restore -h' or 'iptables-restore --help' for more information.\n": "restore: exit status 2: iptables-restore v1.8.9 (legacy): " +
			"Couldn't load target `NOPE':No such file or directory; Error occurred at line: 3 (\"-A LBP-A -j NOPE\")",
		"iptables-restore: line 4 failed\n":                    "restore: exit status 2: iptables-restore: line 4 failed (\"COMMIT\")",
		"# Warning: iptables-legacy tables present\nno line\n": "restore: exit status 2: no line",
	} {
		if got := restoreError("restore", cause, said, render); got.Error() != want || !errors.Is(got, cause) {
			t.Errorf("got  %v\nwant %s", got, want)
		}
	}
	said := "Another app is currently holding the xtables lock. Perhaps you want to use the -w option?\n"
	if got := restoreError("restore", cause, said, render); !errors.Is(got, errLocked) {
		t.Errorf("got %v, want %v", got, errLocked)
	}
}

// TestJumpOrder: the last jump of the list is the first rule.
func TestJumpOrder(t *testing.T) {
	var got []string
	for _, j := range (hook{filterTable, "INPUT"}).wanted() {
		got = append(got, j.rule())
	}
	want := "-j LBP-INPUT | -m conntrack --ctstate NEW -j LBP-FILTER"
	if s := strings.Join(got, " | "); s != want {
		t.Errorf("got %s\nwant %s", s, want)
	}
	for rule, want := range map[string]bool{
		"-j LBP-SERVICES": true, "-p tcp -g LBP-X": true,
		"-m comment --comment LBP-SERVICES -j ACCEPT": false, "-j KUBE-SERVICES": false,
	} {
		if leadsToOurs(rule) != want {
			t.Errorf("%s: got %t", rule, !want)
		}
	}
}

// TestLockFile: one agent at a time, and the next when it has ended.
func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f, err := lockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockFile(path); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), path) {
		t.Errorf("second lock: got %v, want %v", err, ErrRunning)
	}
	f.Close()
	if f, err = lockFile(path); err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	f.Close()
	if _, err := lockFile(filepath.Join(path, "x")); err == nil || errors.Is(err, ErrRunning) {
		t.Errorf("no directory: got %v", err)
	}
}
