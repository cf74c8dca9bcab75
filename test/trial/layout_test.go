// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// otherLayout makes a version of lbproxy with another layout of its tables: fields are
// elsewhere in the entries of connections and flows, and sizes differ.
func otherLayout(t *testing.T) (path string) {
	t.Helper()
	dir := t.TempDir()
	for _, part := range []string{"bpf", "cmd", "internal", "go.mod", "go.sum"} {
		command(t, ".", "cp", "-a", filepath.Join(repository(), part), dir)
	}
	types := filepath.Join(dir, "bpf", "lib", "types.h")
	for _, e := range []struct{ file, from, to string }{
		{types, `(?s)struct conn \{\n(.*?\n)\};(\n_Static_assert\(sizeof\(struct conn\) == )48`, "struct conn {\n\t__u64 other;\n$1};${2}56"},
		{types, `(?s)struct udp_flow \{\n(\t__u64 last;[^\n]*\n)(.*?\n)\};(\n_Static_assert\(sizeof\(struct udp_flow\) == )40`,
			"struct udp_flow {\n$2$1\t__u64 other;\n};${3}48"},
		{filepath.Join(dir, "internal", "dataplane", "ebpf", "maps.go"), `const layoutVersion = "v\d+"`, `const layoutVersion = "v99"`},
	} {
		text, err := os.ReadFile(e.file)
		if err != nil {
			t.Fatal(err)
		}
		next := regexp.MustCompile(e.from).ReplaceAllString(string(text), e.to)
		if next == string(text) {
			t.Fatalf("%s: nothing is %s", e.file, e.from)
		}
		if err := os.WriteFile(e.file, []byte(next), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	command(t, dir, "go", "generate", "-run", " (sock|lb|stale) ", "./internal/dataplane/ebpf")
	path = filepath.Join(dir, "lbproxy")
	command(t, dir, "go", "build", "-trimpath", "-buildvcs=false", "-o", path, "./cmd/lbproxy")
	return path
}

// command runs a program of this machine.
func command(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// TestLayouts: a restart, an upgrade to a version with another layout of the tables, and the
// way back, on which some agents are killed, break no connection.
func TestLayouts(t *testing.T) {
	t.Parallel()
	other := otherLayout(t)
	r := newSwitchRig(t)
	run := func(path string) *agent {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), path, r.runArgs("--dataplane=ebpf")...)
		cmd.Dir, cmd.Env = r.home, r.env()
		return r.launch(cmd)
	}
	layouts := func() string {
		t.Helper()
		dirs, err := filepath.Glob(filepath.Join(r.lab.BPFFS(), "lbproxy", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range dirs {
			dirs[i] = filepath.Base(dirs[i])
		}
		return strings.Join(dirs, " ")
	}
	a := run(program)
	a.awaitReady()
	ours := layouts()
	l := r.startLoad()
	first := r.old("the first one")
	var all []*old
	changes := []struct{ path, layout string }{{program, ours}}
	for range scale {
		changes = append(changes, []struct{ path, layout string }{{other, "v99"}, {program, ours}}...)
	}
	for i, next := range changes {
		what := fmt.Sprintf("change %d, to layout %s", i+1, next.layout)
		t.Log(what)
		a.end(syscall.SIGTERM)
		if i == 2 { // killed at once, and later
			for range 3 {
				a = run(next.path)
				a.awaitLog("starting")
				a.end(syscall.SIGKILL)
			}
		}
		a = run(next.path)
		a.awaitReady()
		l.flows()
		eventually(t, "one layout is there", func() bool { return layouts() == next.layout })
		if line := a.log.line("removed another layout"); i > 0 && line == "" || strings.Contains(line, `taken over"=0`) || a.log.line("start anew") != "" {
			t.Errorf("%s: %q", what, line)
		}
		all = append(all, r.old(what))
		l.flows()
	}
	for _, o := range append(all, first) {
		o.end()
	}
	l.stop()
	eventually(t, "counts are right", func() bool {
		return r.metric("lbproxy_connections_corrected_total") == "0"
	})
}
