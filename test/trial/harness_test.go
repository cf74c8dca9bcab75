// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	backendPort  = 8080
	patience     = 3 * time.Minute // for what should happen soon; this machine may be busy
	pollInterval = 20 * time.Millisecond
	silence      = 500 * time.Millisecond // how long a client waits where nobody should answer
	atOnce       = 900 * time.Millisecond // before TCP sends a lost SYN again

	// envHide names a type of file system that is unmounted before the rest of
	// the command line is executed.
	envHide = "TRIAL_HIDE"
)

// program is the lbproxy that is tried.
var program string

func TestMain(m *testing.M) {
	lab.Main()
	if fs := os.Getenv(envHide); fs != "" {
		fmt.Fprintln(os.Stderr, "trial:", hide(fs, os.Args[1:]))
		os.Exit(99)
	}
	if caps := os.Getenv(envConfine); caps != "" {
		fmt.Fprintln(os.Stderr, "trial:", confine(caps, os.Args[1:]))
		os.Exit(99)
	}
	if file := os.Getenv(envWeb); file != "" {
		fmt.Fprintln(os.Stderr, "trial:", serveWeb(file))
		os.Exit(99)
	}
	os.Exit(buildAndRun(m))
}

// buildAndRun builds lbproxy where any user may run it, then runs the tests.
func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lbproxy-trial-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "trial:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "bin", "lbproxy")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", program, "./cmd/lbproxy")
	build.Dir = repository()
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "trial: go build:", err)
		return 1
	}
	for _, d := range []string{dir, filepath.Dir(program)} {
		if err := os.Chmod(d, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, "trial:", err)
			return 1
		}
	}
	return m.Run()
}

// repository is the root of the module; tests run in their package's directory.
func repository() string { return filepath.Join("..", "..") }

// hide unmounts every file system of a type, in a mount namespace that the caller
// has made, and becomes the given command.
func hide(fstype string, command []string) error {
	mounts, err := mountsOf(fstype)
	if err != nil {
		return err
	}
	for _, dir := range mounts {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return unix.Exec(command[0], command, os.Environ())
}

// rig is a lab whose node may run lbproxy on a directory of manifests, with a
// server on every backend.
type rig struct {
	t    *testing.T
	lab  *lab.Lab
	dir  string // the manifests
	home string // the working directory of commands
}

func newRig(t *testing.T) *rig {
	t.Helper()
	l, err := lab.New(lab.Options{Name: "trial", Pods: []lab.PodSpec{
		{Name: "client1"}, {Name: "client2", Unhooked: true},
		{Name: "backend1", Addr4: addr("10.244.1.11"), Addr6: addr("fd00:10:244:1::11")},
		{Name: "backend2", Addr4: addr("10.244.1.12"), Addr6: addr("fd00:10:244:1::12")},
		{Name: "backend3", Addr4: addr("10.244.1.13"), Addr6: addr("fd00:10:244:1::13")},
		{Name: "remote1", Node: lab.Node2, Addr4: addr("10.244.2.11"), Addr6: addr("fd00:10:244:2::11")},
	}})
	if err != nil {
		t.Fatalf("lab (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{t: t, lab: l, dir: filepath.Join(l.Dir(), "manifests"), home: l.Dir()}
	for _, d := range []string{l.Dir(), r.dir} { // also for users who are not root
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"backend1", "backend2", "backend3", "remote1"} {
		for _, proto := range []string{lab.TCP, lab.UDP} {
			if err := l.Host(name).Serve(t.Context(), proto, lab.AnyAddr(backendPort)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// env keeps every verb inside the lab: flags are also variables.
func (r *rig) env() []string {
	return append(os.Environ(),
		"LBPROXY_CGROUP_ROOT="+r.lab.CgroupRoot(),
		"LBPROXY_BPFFS="+r.lab.BPFFS(),
		"LBPROXY_STATE_DIR="+filepath.Join(r.lab.Dir(), "state"),
	)
}

// eventually waits for a condition that another process brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	within(t, patience, what, ok)
}

func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for deadline := time.Now().Add(d); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", d, what)
		}
	}
}

// bounded is a context for one thing to do.
func (r *rig) bounded() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	r.t.Cleanup(cancel)
	return ctx
}
