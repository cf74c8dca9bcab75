// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// TestList reads a report as ginkgo writes it: tests that were not chosen are left out,
// a step around the tests counts when it failed.
func TestList(t *testing.T) {
	path := filepath.Join(t.TempDir(), "junit.xml")
	report := `<testsuites><testsuite>
		<testcase name="[It] [sig-network] b passes" time="4.04"></testcase>
		<testcase name="[It] [sig-network] a fails" time="2"><failure message="timed&#xA;out"></failure></testcase>
		<testcase name="[It] [sig-network] c skips itself" time="0"><skipped message="skipped - needs three nodes"></skipped></testcase>
		<testcase name="[It] [sig-apps] not chosen" time="0"><skipped message="skipped"></skipped></testcase>
		<testcase name="[SynchronizedBeforeSuite]" time="1"></testcase>
		<testcase name="[ReportAfterSuite] z" time="1"><error message="no disk"></error></testcase>
	</testsuite></testsuites>`
	if err := os.WriteFile(path, []byte(report), 0o600); err != nil {
		t.Fatal(err)
	}
	want := `FAIL    1.0s [ReportAfterSuite] z  # no disk
FAIL    2.0s [sig-network] a fails  # timed out
PASS    4.0s [sig-network] b passes
SKIP    0.0s [sig-network] c skips itself  # needs three nodes
# 1 passed, 2 failed, 1 skipped
`
	var got strings.Builder
	if err := list(&got, []string{path}); err != nil {
		t.Fatal(err)
	}
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
	again, err := parse(strings.NewReader(got.String()))
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(want, "\n")[:4] {
		if again[i].String() != line {
			t.Errorf("a list that is read and written again has %q, want %q", again[i], line)
		}
	}
}

// TestTable: a reason excuses a failure only where the test passes with no proxy, a later
// list counts unless the test skipped itself there, and a name that no test has is an error.
func TestTable(t *testing.T) {
	dir := fstest.MapFS{}
	for name, text := range map[string]string{
		"intro.md":                  "intro",
		"tests.txt":                 "[sig-network] S should work\n[sig-network] S should use SCTP\n[sig-network] S should not run\n",
		"reasons.txt":               "SCTP|should work\tno SCTP here\n",
		"kube-proxy-iptables/1.txt": "PASS 1.0s [sig-network] S should work\nFAIL 1.0s [sig-network] S should use SCTP  # timeout\n",
		"lbproxy-ebpf/1.txt":        "FAIL 1.0s [sig-network] S should work  # refused\n",
		"lbproxy-ebpf/2.txt":        "SKIP 1.0s [sig-network] S should work  # no nodes\n",
		"lbproxy-iptables/1.txt":    "FAIL 1.0s [sig-network] S should work\n",
		"lbproxy-iptables/2.txt":    "# again\nPASS 1.0s [sig-network] S should work\n",
	} {
		dir[name] = &fstest.MapFile{Data: []byte(text)}
	}
	var got strings.Builder
	if err := table(&got, dir); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| should work | pass | not run | **fail** [1](#notes) | pass [2](#notes) |",
		"| should use SCTP | cannot run [3](#notes) | cannot run [3](#notes) |",
		"| should not run | not run | not run |",
		"| passed | 1 | 0 | 0 | 1 |",
		"1. refused\n2. failed in an earlier run, see the lists\n3. no SCTP here",
	} {
		if !strings.Contains(got.String(), want) {
			t.Errorf("no %q in\n%s", want, got.String())
		}
	}
	dir["lbproxy-ebpf/3.txt"] = &fstest.MapFile{Data: []byte("PASS 1.0s [sig-network] S should sing\n")}
	if err := table(&got, dir); err == nil {
		t.Error("a result of an unknown test is no error")
	}
}

// TestTableIsCurrent: docs/CONFORMANCE.md is what make e2e-table writes.
func TestTableIsCurrent(t *testing.T) {
	var want strings.Builder
	if err := table(&want, os.DirFS("../results")); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../../docs/CONFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want.String() {
		t.Error("docs/CONFORMANCE.md is not what test/e2e/results say: make e2e-table")
	}
}
