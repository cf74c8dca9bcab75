// SPDX-License-Identifier: Apache-2.0

// Package nested builds programs that are modules of their own inside the
// repository, so that what they need stays out of the product's go.mod: the
// servers of test/cluster and the kube-proxy that bench/control measures beside.
// Like package lab, it is no part of the product.
package nested

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// Program is a nested module with one main.go.
type Program struct {
	Dir    string // from the root of the repository; its last part is the program's name
	Module string // whose version in go.mod is the program's

	// Flags are the linker's for a version such as v1.37.2; nil: -s -w.
	Flags func(version string) string
}

// Kubernetes stamps version the way release builds of Kubernetes do: a binary
// without it says v0.0.0 and refuses some clients and feature gates.
func Kubernetes(version string) string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	flags := "-s -w"
	for _, kv := range []string{
		"gitVersion=" + version, "gitMajor=" + major, "gitMinor=" + minor,
		"gitTreeState=clean", "gitCommit=" + strings.Repeat("0", 40),
		"buildDate=2026-01-01T00:00:00Z",
	} {
		flags += " -X k8s.io/component-base/version." + kv
	}
	return flags
}

// Build returns the paths of programs, in their order. It compiles, for minutes,
// those that .cache/bin at the root of the repository lacks; a file there is
// named after the program's version and its sources. It may be called from
// several processes at once.
func Build(ctx context.Context, programs ...Program) ([]string, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(root, ".cache", "bin")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	unlock, err := lockFile(filepath.Join(cache, "lock"))
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	defer unlock()
	paths := make([]string, len(programs))
	for i, p := range programs {
		if paths[i], err = p.build(ctx, root, cache); err != nil {
			return nil, fmt.Errorf("build %s: %w", p.name(), err)
		}
	}
	return paths, nil
}

func (p Program) name() string { return filepath.Base(p.Dir) }

// build returns the path of p in the directory cache, made if it is missing.
func (p Program) build(ctx context.Context, root, cache string) (string, error) {
	dir := filepath.Join(root, p.Dir)
	version, sum, err := p.version(dir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, p.name()+"-"+version+"-"+sum)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	flags := "-s -w"
	if p.Flags != nil {
		flags = p.Flags(version)
	}
	part := path + ".part"
	cmd := exec.CommandContext(ctx, "nice", "-n", "15", "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", flags, "-o", part, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	if err := os.Rename(part, path); err != nil {
		return "", err
	}
	return path, nil
}

// version returns the version that go.mod in dir asks for, and eight
// hexadecimal digits that change when go.mod or main.go do.
func (p Program) version(dir string) (version, sum string, err error) {
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", "", fmt.Errorf("version: %w", err)
	}
	src, err := os.ReadFile(filepath.Join(dir, "main.go"))
	if err != nil {
		return "", "", fmt.Errorf("version: %w", err)
	}
	re := regexp.MustCompile(`(?m)^(?:require\s+|\s+)` + regexp.QuoteMeta(p.Module) + `\s+(v\S+)`)
	m := re.FindSubmatch(mod)
	if m == nil {
		return "", "", fmt.Errorf("version: %s/go.mod does not require %s", dir, p.Module)
	}
	h := sha256.Sum256(append(mod, src...))
	return string(m[1]), fmt.Sprintf("%x", h[:4]), nil
}

// Root returns the directory of the product's go.mod, which is the working
// directory or above it.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("repository root: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(mod, []byte("module github.com/lbproxy/lbproxy\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("repository root: no go.mod of lbproxy above the working directory")
		}
	}
}

// lockFile waits for the exclusive lock of the file path, made if missing.
// The kernel drops the lock of a process that dies.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}
