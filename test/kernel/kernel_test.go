// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMachine boots the machine, so it takes a minute and runs only when asked:
// LBPROXY_TEST_VM=1 go test ./test/kernel, as make test-kernel does.
func TestMachine(t *testing.T) {
	if os.Getenv("LBPROXY_TEST_VM") == "" {
		t.Skip("set LBPROXY_TEST_VM=1 to boot the test machine")
	}
	const fail = "./testdata/fail"
	for _, tc := range []struct {
		name string
		args []string
		code int
		want []string // in the output
	}{
		{"smoke passes", []string{"./smoke"}, exitOK,
			[]string{"--- PASS: TestConnectHook", "--- PASS: TestClsact", "kernel 6.", "ok   "}},
		{"one failure among others", []string{"-run=Fail|BTF", fail, "./smoke"}, exitFailed,
			[]string{"--- FAIL: TestFail", "FAIL (exit 1)", "--- PASS: TestBTF"}},
		{"kernel warning", []string{"-run=Warn", fail}, exitFailed,
			[]string{"--- PASS: TestWarn", "FAIL (kernel warning)"}},
		{"kernel panic", []string{"-run=Panic", fail}, exitDied,
			[]string{"sysrq triggered crash", "stopped before the tests were done"}},
		{"test times out", []string{"-run=Hang", fail, "--", "-test.timeout=1s"}, exitFailed,
			[]string{"panic: test timed out", "FAIL (exit 2)"}},
		{"machine times out", []string{"-timeout=20s", "-run=Hang", fail, "--", "-test.timeout=0"}, exitTimeout,
			[]string{"out of time"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			if code := run(t.Context(), tc.args, &out, &out); code != tc.code {
				t.Errorf("run %q: exit code %d, want %d\n%s", tc.args, code, tc.code, &out)
			}
			for _, w := range tc.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("run %q: output lacks %q\n%s", tc.args, w, &out)
				}
			}
		})
	}
}

func TestMissingToolsNameTheirPackages(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var out bytes.Buffer
	if code := run(t.Context(), []string{"./smoke"}, io.Discard, &out); code != exitSetup {
		t.Errorf("exit code %d, want %d", code, exitSetup)
	}
	if want := "apt-get install -y --no-install-recommends qemu-system-x86 "; !strings.Contains(out.String(), want) {
		t.Errorf("got %q, want it to contain %q", &out, want)
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct{ name, argv, targets, args string }{
		{"defaults", "./a", "./a", "-test.timeout=9m0s -test.v"},
		{"shorthands", "-v=false -short -run=X ./a b.test", "./a b.test", "-test.timeout=9m0s -test.short -test.run=X"},
		{"passed on", "-timeout=10s ./a -- -test.count=2", "./a", "-test.timeout=9s -test.v -test.count=2"},
		{"no target", "-short", "", ""},
		{"only test flags", "-- -test.v", "", ""},
		{"bad file", "-file=x ./a", "", ""},
		{"bad size", "-memory=1 ./a", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opt, err := parse(strings.Fields(tc.argv), io.Discard)
			if (err != nil) != (tc.targets == "") {
				t.Fatalf("parse %q: error %v", tc.argv, err)
			}
			if err != nil {
				return
			}
			if got := strings.Join(opt.targets, " "); got != tc.targets {
				t.Errorf("parse %q: targets %q, want %q", tc.argv, got, tc.targets)
			}
			if got := strings.Join(opt.args, " "); got != tc.args {
				t.Errorf("parse %q: args %q, want %q", tc.argv, got, tc.args)
			}
		})
	}
}

func TestConsole(t *testing.T) {
	for _, tc := range []struct {
		name, in, out string
		code          int
		phase         string
	}{
		{"all pass", "\x1b[2Jhello\r\n@@T booted 6.1\n@@T start a\n=== RUN\r\n@@T exit 0 a\n@@T finished\nbye\n",
			"hello\n=== RUN\n", exitOK, "between tests"},
		{"mark after an unfinished line", "@@T booted 6.1\n@@T start a\nhalf@@T exit 1 a\n@@T finished\n",
			"half\n", exitFailed, "between tests"},
		{"warning", "@@T booted 6.1\n@@T start a\n@@T warned a\n@@T exit 0 a\n@@T finished\n",
			"", exitFailed, "between tests"},
		{"another token", "@@U finished\n", "@@U finished\n", exitOK, "booting"},
		{"cut short", "@@T booted 6.1\n@@T start a\nlast words", "last words\n", exitOK, "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			c := console{token: "T", out: &out, log: io.Discard}
			if err := c.read(strings.NewReader(tc.in)); err != nil {
				t.Fatal(err)
			}
			if out.String() != tc.out {
				t.Errorf("%q: output %q, want %q", tc.in, &out, tc.out)
			}
			if code := c.report(io.Discard); code != tc.code {
				t.Errorf("%q: code %d, want %d", tc.in, code, tc.code)
			}
			if c.done != strings.Contains(tc.in, "@@T finished") {
				t.Errorf("%q: done = %v", tc.in, c.done)
			}
			if c.phase() != tc.phase {
				t.Errorf("%q: phase %q, want %q", tc.in, c.phase(), tc.phase)
			}
		})
	}
}

func TestLoadOrder(t *testing.T) {
	deps := map[string][]string{
		"nf_nat": {"nf_conntrack", "libcrc32c"}, "nf_conntrack": {"libcrc32c", "nf_defrag"},
		"libcrc32c": nil, "nf_defrag": nil, "veth": nil,
	}
	lookup := func(name string) (string, []string, error) {
		if name == "ipv6" { // built in
			return "", nil, nil
		}
		d, ok := deps[name]
		if !ok {
			return "", nil, errors.New("no such module")
		}
		return name + ".ko", d, nil
	}
	got, err := loadOrder([]string{"ipv6", "nf-nat", "veth", "nf_conntrack"}, lookup)
	want := []string{"libcrc32c.ko", "nf_defrag.ko", "nf_conntrack.ko", "nf_nat.ko", "veth.ko"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("loadOrder = %q, %v, want %q", got, err, want)
	}
	if _, err := loadOrder([]string{"nosuch"}, lookup); err == nil {
		t.Error("loadOrder of an unknown module: no error")
	}
}

// TestArchive unpacks an archive with cpio.
func TestArchive(t *testing.T) {
	host := t.TempDir()
	for name, text := range map[string]string{"one": "1", "sub/two": "22"} {
		p := filepath.Join(host, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	var buf bytes.Buffer
	a := newArchive(&buf)
	a.Text("/etc/hosts", 0o644, "x")
	a.Link("bin/sh", "busybox")
	a.Copy("/data", host)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Fatal("no cpio on this host: apt-get install cpio")
	}
	cmd := exec.CommandContext(t.Context(), "cpio", "-itv", "--quiet")
	cmd.Stdin = &buf
	out, err := output(cmd)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		got = append(got, fmt.Sprint(f[0], " ", f[4], " ", strings.Join(f[8:], " ")))
	}
	want := []string{
		"drwxr-xr-x 0 etc", "-rw-r--r-- 1 etc/hosts", "drwxr-xr-x 0 bin", "lrwxrwxrwx 7 bin/sh -> busybox",
		"drwxr-xr-x 0 data", "-rw-r----- 1 data/one", "drwxr-xr-x 0 data/sub", "-rw-r----- 2 data/sub/two",
	}
	if !slices.Equal(got, want) {
		t.Errorf("cpio lists\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestCopyOfMissingFileFails(t *testing.T) {
	a := newArchive(io.Discard)
	a.Copy("/x", filepath.Join(t.TempDir(), "nosuch"))
	if err := a.Close(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Close = %v, want not exist", err)
	}
}
