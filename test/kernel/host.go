// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// module is the path in go.mod that marks the repository root.
const module = "module github.com/lbproxy/lbproxy\n"

const (
	qemu    = "qemu-system-x86_64"
	busybox = "/bin/busybox"
)

// checkTools reports everything this host lacks in one error that names the
// packages to install.
func checkTools() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("needs a linux/amd64 host, this is %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	var missing []string
	for _, t := range []struct{ program, pkg string }{
		{qemu, "qemu-system-x86"},
		{"dpkg-deb", "dpkg"},
		{"apt-get", "apt"},
	} {
		if _, err := exec.LookPath(t.program); err != nil {
			missing = append(missing, t.pkg)
		}
	}
	if err := checkStatic(busybox); err != nil {
		missing = append(missing, "busybox-static")
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing packages; run: apt-get install -y --no-install-recommends %s",
			strings.Join(missing, " "))
	}
	return nil
}

// checkStatic fails unless path is an ELF program that needs no loader.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: read: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s: dynamically linked; build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}

// repoRoot returns the nearest parent of the working directory that holds
// lbproxy's go.mod.
func repoRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("working directory: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), module) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside the lbproxy repository", wd)
		}
	}
}

// test is one binary to run in the machine.
type test struct {
	name     string // as shown in reports: an import path or a file name
	binary   string // path on the host
	testdata string // directory on the host, or ""
}

// buildTests turns each target into tests: a regular file is a test binary,
// anything else a package pattern to build. Packages without tests are skipped.
func buildTests(ctx context.Context, dir string, targets []string) ([]test, error) {
	var tests []test
	var patterns []string
	for _, t := range targets {
		if st, err := os.Stat(t); err != nil || !st.Mode().IsRegular() {
			patterns = append(patterns, t)
			continue
		}
		if err := checkStatic(t); err != nil {
			return nil, err
		}
		tests = append(tests, test{name: filepath.Base(t), binary: t})
	}
	if len(patterns) > 0 {
		built, err := buildPackages(ctx, dir, patterns)
		if err != nil {
			return nil, err
		}
		tests = append(tests, built...)
	}
	if len(tests) == 0 {
		return nil, errors.New("none of the packages has tests")
	}
	return tests, nil
}

// buildPackages compiles the tests of every package that patterns match, with
// those that need root.
func buildPackages(ctx context.Context, dir string, patterns []string) ([]test, error) {
	const format = `{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}	{{.Dir}}{{end}}`
	out, err := goCmd(ctx, append([]string{"list", "-tags=root", "-f", format}, patterns...)...)
	if err != nil {
		return nil, err
	}
	var tests []test
	for line := range strings.Lines(out) {
		path, src, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok {
			continue
		}
		t := test{name: path, binary: filepath.Join(dir, fmt.Sprintf("%d.test", len(tests)))}
		if _, err := goCmd(ctx, "test", "-c", "-tags=root", "-o", t.binary, path); err != nil {
			return nil, err
		}
		if data := filepath.Join(src, "testdata"); isDir(data) {
			t.testdata = data
		}
		tests = append(tests, t)
	}
	return tests, nil
}

// goCmd runs the go command for the machine and returns its standard output.
func goCmd(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	return output(cmd)
}

// output runs cmd and returns its standard output; its error carries stderr.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
