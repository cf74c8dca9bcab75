// SPDX-License-Identifier: Apache-2.0

package cluster

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

// Binaries are the paths of the two servers of a cluster.
type Binaries struct {
	Etcd      string
	APIServer string
}

// server is one program that Build makes: a nested module with one main.go.
type server struct {
	name    string // of the binary, its nested module and its log
	module  string // whose version in go.mod is the server's
	ldflags func(version string) string
}

var (
	etcdServer = server{
		name:    "etcd",
		module:  "go.etcd.io/etcd/server/v3",
		ldflags: func(string) string { return "-s -w" },
	}
	apiServer = server{
		name:    "kube-apiserver",
		module:  "k8s.io/kubernetes",
		ldflags: kubernetesFlags,
	}
)

// kubernetesFlags stamps version, such as v1.37.2, the way release builds do:
// a binary without it says v0.0.0 and refuses some clients and feature gates.
func kubernetesFlags(version string) string {
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

// Build returns the servers of the cluster. It compiles, for minutes, those
// that .cache/bin at the root of the repository lacks; a file there is named
// after the server's version and its sources. It may be called from several
// processes at once.
func Build(ctx context.Context) (Binaries, error) {
	root, err := repoRoot()
	if err != nil {
		return Binaries{}, err
	}
	cache := filepath.Join(root, ".cache", "bin")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Binaries{}, fmt.Errorf("cache: %w", err)
	}
	unlock, err := lockFile(filepath.Join(cache, "lock"))
	if err != nil {
		return Binaries{}, fmt.Errorf("cache: %w", err)
	}
	defer unlock()
	var b Binaries
	if b.Etcd, err = etcdServer.build(ctx, root, cache); err != nil {
		return Binaries{}, err
	}
	if b.APIServer, err = apiServer.build(ctx, root, cache); err != nil {
		return Binaries{}, err
	}
	return b, nil
}

// build returns the path of s in the directory cache, made if it is missing.
func (s server) build(ctx context.Context, root, cache string) (string, error) {
	dir := filepath.Join(root, "test", "cluster", s.name)
	version, sum, err := s.version(dir)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", s.name, err)
	}
	path := filepath.Join(cache, s.name+"-"+version+"-"+sum)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	part := path + ".part"
	cmd := exec.CommandContext(ctx, "nice", "-n", "15", "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", s.ldflags(version), "-o", part, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", s.name, err, out)
	}
	if err := os.Rename(part, path); err != nil {
		return "", fmt.Errorf("build %s: %w", s.name, err)
	}
	return path, nil
}

// version returns the version that go.mod in dir asks for, and eight
// hexadecimal digits that change when go.mod or main.go do.
func (s server) version(dir string) (version, sum string, err error) {
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", "", fmt.Errorf("version: %w", err)
	}
	src, err := os.ReadFile(filepath.Join(dir, "main.go"))
	if err != nil {
		return "", "", fmt.Errorf("version: %w", err)
	}
	re := regexp.MustCompile(`(?m)^(?:require\s+|\s+)` + regexp.QuoteMeta(s.module) + `\s+(v\S+)`)
	m := re.FindSubmatch(mod)
	if m == nil {
		return "", "", fmt.Errorf("version: %s/go.mod does not require %s", dir, s.module)
	}
	h := sha256.Sum256(append(mod, src...))
	return string(m[1]), fmt.Sprintf("%x", h[:4]), nil
}

// repoRoot returns the directory of the product's go.mod, which is the working
// directory or above it.
func repoRoot() (string, error) {
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
