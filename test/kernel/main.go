// SPDX-License-Identifier: Apache-2.0

// Command kernel runs Go test binaries as root on the oldest kernel lbproxy
// supports, Debian's 6.1 cloud kernel, inside a qemu virtual machine.
//
//	go run ./test/kernel [flags] (PACKAGE|BINARY)... [-- -test.FLAG...]
//
// A package is built with CGO_ENABLED=0 go test -c -tags=root and its testdata
// directory comes along; a binary must be linked statically. The machine is
// emulated (TCG), has no disk and no network, and is thrown away afterwards.
//
// Exit codes: 0 every test passed, 1 a test failed or the kernel warned, 2 the
// harness could not start, 3 the machine died, 4 it ran out of time. (go run
// turns all but the first into 1.)
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	exitOK = iota
	exitFailed
	exitSetup
	exitDied
	exitTimeout
)

// options is what the command line asks for.
type options struct {
	timeout time.Duration // for everything: download, build, boot and tests
	memory  int           // MiB
	cpus    int
	release string   // kernel release, or "" for the newest packaged one
	deb     string   // a kernel package file to use instead of asking apt
	modules []string // extra kernel modules
	files   []string // HOST:GUEST
	env     []string // KEY=VALUE
	targets []string // packages and binaries
	args    []string // for every test binary
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with its surroundings as arguments; it returns the exit code.
// Test output goes to stdout, the harness's own lines to stderr.
func run(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	opt, err := parse(argv, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	var res result
	if err == nil {
		res, err = boot(ctx, opt, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "test/kernel: %v\n", err)
	}
	switch {
	case errors.Is(err, errTimeout):
		return exitTimeout
	case errors.Is(err, errDied):
		return exitDied
	case err != nil:
		return exitSetup
	}
	return res.report(stderr)
}

// boot prepares kernel, tests and initramfs, then runs the machine.
func boot(ctx context.Context, opt options, stdout, stderr io.Writer) (_ result, err error) {
	if err := checkTools(); err != nil {
		return result{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, opt.timeout, errTimeout)
	defer cancel()
	defer func() { // a command we killed says only "signal: killed"
		if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
	}()
	root, err := repoRoot()
	if err != nil {
		return result{}, err
	}
	k, err := findKernel(ctx, filepath.Join(root, ".cache", "kernel"), opt, stderr)
	if err != nil {
		return result{}, err
	}
	dir, err := os.MkdirTemp("", "lbproxy-kernel-")
	if err != nil {
		return result{}, fmt.Errorf("work directory: %w", err)
	}
	defer os.RemoveAll(dir)

	tests, err := buildTests(ctx, dir, opt.targets)
	if err != nil {
		return result{}, err
	}
	vm := machine{opt: opt, kernel: k, initrd: filepath.Join(dir, "initrd"), token: newToken()}
	if err := vm.writeInitrd(tests); err != nil {
		return result{}, fmt.Errorf("initramfs: %w", err)
	}
	return vm.run(ctx, stdout, stderr)
}

// parse turns the command line into options.
func parse(argv []string, stderr io.Writer) (options, error) {
	var opt options
	fs := flag.NewFlagSet("kernel", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintf(stderr, "usage: go run ./test/kernel [flags] (PACKAGE|BINARY)... [-- -test.FLAG...]\n")
		fs.PrintDefaults()
	}
	fs.DurationVar(&opt.timeout, "timeout", 10*time.Minute, "stop everything after this long")
	fs.IntVar(&opt.memory, "memory", 1024, "memory of the machine, in MiB")
	fs.IntVar(&opt.cpus, "cpus", 2, "virtual CPUs")
	fs.StringVar(&opt.release, "kernel", "", "kernel release, such as 6.1.0-56-cloud-amd64 (default: what linux-image-cloud-amd64 depends on)")
	fs.StringVar(&opt.deb, "deb", "", "take the kernel from this linux-image .deb")
	fs.Func("modules", "also load these kernel modules, comma separated", func(s string) error {
		opt.modules = append(opt.modules, strings.Split(s, ",")...)
		return nil
	})
	fs.Func("file", "add a file or directory, as HOST:GUEST (repeatable)", list(&opt.files, ":"))
	fs.Func("env", "set an environment variable, as KEY=VALUE (repeatable)", list(&opt.env, "="))
	verbose := fs.Bool("v", true, "pass -test.v")
	short := fs.Bool("short", false, "pass -test.short")
	pattern := fs.String("run", "", "pass -test.run=`REGEXP`")
	if err := fs.Parse(argv); err != nil {
		return opt, err
	}
	if opt.timeout <= 0 || opt.memory < 128 || opt.cpus < 1 {
		return opt, errors.New("need -timeout > 0, -memory >= 128 and -cpus >= 1")
	}
	opt.targets = fs.Args()
	// A little less than our own limit, so that a hung test prints its stacks.
	opt.args = []string{"-test.timeout=" + (opt.timeout * 9 / 10).String()}
	if *verbose {
		opt.args = append(opt.args, "-test.v")
	}
	if *short {
		opt.args = append(opt.args, "-test.short")
	}
	if *pattern != "" {
		opt.args = append(opt.args, "-test.run="+*pattern)
	}
	if i := slices.Index(opt.targets, "--"); i >= 0 {
		opt.args = append(opt.args, opt.targets[i+1:]...)
		opt.targets = opt.targets[:i]
	}
	if len(opt.targets) == 0 || strings.HasPrefix(opt.targets[0], "-") {
		fs.Usage()
		return opt, errors.New("no test packages or binaries given")
	}
	return opt, nil
}

// list returns a flag setter that appends values holding sep to dst.
func list(dst *[]string, sep string) func(string) error {
	return func(s string) error {
		if !strings.Contains(s, sep) || strings.Contains(s, "\n") {
			return fmt.Errorf("want two parts joined by %q on one line", sep)
		}
		*dst = append(*dst, s)
		return nil
	}
}
