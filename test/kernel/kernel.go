// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// metapackage depends on the newest cloud kernel that Debian ships.
const metapackage = "linux-image-cloud-amd64"

// kernel is an unpacked kernel package in the cache.
type kernel struct {
	release string // as uname -r prints it
	dir     string // holds vmlinuz, config and modules/
}

// findKernel returns the kernel that opt asks for. What is not in the cache is
// taken from opt.deb or downloaded with apt-get, which checks its signature;
// nothing is installed.
func findKernel(ctx context.Context, cache string, opt options, stderr io.Writer) (kernel, error) {
	if opt.deb != "" {
		return unpack(ctx, cache, opt.deb)
	}
	release := opt.release
	if release == "" {
		var err error
		if release, err = newestRelease(ctx); err != nil {
			if release = lastCached(cache); release == "" {
				return kernel{}, err
			}
		}
	}
	k := kernel{release: release, dir: filepath.Join(cache, release)}
	if isDir(k.dir) {
		return k, nil
	}
	tmp, err := os.MkdirTemp("", "lbproxy-deb-")
	if err != nil {
		return kernel{}, fmt.Errorf("download directory: %w", err)
	}
	defer os.RemoveAll(tmp)
	fmt.Fprintf(stderr, "test/kernel: downloading linux-image-%s\n", release)
	start := time.Now()
	cmd := exec.CommandContext(ctx, "apt-get", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", "linux-image-"+release)
	cmd.Dir = tmp
	if _, err := output(cmd); err != nil {
		return kernel{}, fmt.Errorf("download kernel (apt-get update first?): %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return kernel{}, fmt.Errorf("apt-get download linux-image-%s left %d packages, want 1", release, len(debs))
	}
	if k, err = unpack(ctx, cache, debs[0]); err == nil {
		fmt.Fprintf(stderr, "test/kernel: cached %s in %v\n", k.dir, time.Since(start).Round(time.Millisecond))
	}
	return k, err
}

// newestRelease asks apt which kernel the metapackage depends on.
func newestRelease(ctx context.Context) (string, error) {
	out, err := output(exec.CommandContext(ctx, "apt-cache", "depends", metapackage))
	if err != nil {
		return "", fmt.Errorf("find a kernel (apt-get update first?): %w", err)
	}
	const prefix = "Depends: linux-image-"
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
			return rest, nil
		}
	}
	return "", fmt.Errorf("apt knows no %s: run apt-get update on Debian bookworm, or pass -deb", metapackage)
}

// lastCached returns the kernel that entered the cache last, or "". It serves
// hosts without package lists.
func lastCached(cache string) string {
	var release string
	var when time.Time
	images, _ := filepath.Glob(filepath.Join(cache, "[0-9]*", "vmlinuz")) // the pattern is valid
	for _, image := range images {
		dir := filepath.Dir(image)
		if st, err := os.Stat(dir); err == nil && st.ModTime().After(when) {
			release, when = filepath.Base(dir), st.ModTime()
		}
	}
	return release
}

// unpack extracts a kernel package into the cache. It appears there complete or
// not at all, so an interrupted or concurrent run does no harm.
func unpack(ctx context.Context, cache, deb string) (kernel, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return kernel{}, fmt.Errorf("kernel cache: %w", err)
	}
	tmp, err := os.MkdirTemp(cache, ".unpack-")
	if err != nil {
		return kernel{}, fmt.Errorf("kernel cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	if _, err := output(exec.CommandContext(ctx, "dpkg-deb", "-x", deb, tmp)); err != nil {
		return kernel{}, fmt.Errorf("unpack kernel: %w", err)
	}
	images, err := filepath.Glob(filepath.Join(tmp, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("%s holds %d kernels, want 1", deb, len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	k := kernel{release: release, dir: filepath.Join(cache, release)}
	if isDir(k.dir) {
		return k, nil
	}
	staged := filepath.Join(tmp, "staged")
	if err := os.Mkdir(staged, 0o755); err != nil {
		return kernel{}, fmt.Errorf("kernel cache: %w", err)
	}
	for from, to := range map[string]string{
		images[0]: "vmlinuz",
		filepath.Join(tmp, "boot", "config-"+release): "config",
		filepath.Join(tmp, "lib", "modules", release): "modules",
	} {
		if err := os.Rename(from, filepath.Join(staged, to)); err != nil {
			return kernel{}, fmt.Errorf("kernel cache: %w", err)
		}
	}
	if err := k.checkConfig(filepath.Join(staged, "config")); err != nil {
		return kernel{}, err
	}
	if err := os.Rename(staged, k.dir); err != nil && !isDir(k.dir) {
		return kernel{}, fmt.Errorf("kernel cache: %w", err)
	}
	return k, nil
}

// checkConfig fails unless the kernel has built in what no module can add.
func (k kernel) checkConfig(path string) error {
	config, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("kernel %s: config: %w", k.release, err)
	}
	var errs []error
	for _, o := range []string{"DEBUG_INFO_BTF", "CGROUP_BPF", "BPF_JIT", "IPV6", "DEVTMPFS", "SERIAL_8250_CONSOLE"} {
		if line := "\nCONFIG_" + o + "=y\n"; !strings.Contains(string(config), line) {
			errs = append(errs, fmt.Errorf("kernel %s: lacks CONFIG_%s=y", k.release, o))
		}
	}
	return errors.Join(errs...)
}

// image returns the path of the bootable kernel.
func (k kernel) image() string { return filepath.Join(k.dir, "vmlinuz") }

// modules returns the files to load for names and all they depend on, in an
// order that insmod can follow. Names that are built in need no file.
//
// The package has no modules.dep (depmod writes it on installation), so the
// dependencies come from each module's own .modinfo section.
func (k kernel) modules(names []string) ([]string, error) {
	root := filepath.Join(k.dir, "modules")
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[canonical(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("kernel %s: modules: %w", k.release, err)
	}
	builtin, err := readBuiltin(filepath.Join(root, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", k.release, err)
	}
	return loadOrder(names, func(name string) (string, []string, error) {
		file, ok := files[name]
		switch {
		case ok:
			deps, err := dependencies(file)
			return file, deps, err
		case builtin[name]:
			return "", nil, nil
		}
		return "", nil, fmt.Errorf("kernel %s: no module %s", k.release, name)
	})
}

// loadOrder returns the files of names, each once and after its dependencies.
// lookup gives a module's file ("" if it needs none) and dependencies.
func loadOrder(names []string, lookup func(name string) (string, []string, error)) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = canonical(name)
		if seen[name] {
			return nil
		}
		seen[name] = true
		file, deps, err := lookup(name)
		if err != nil {
			return err
		}
		for _, d := range deps {
			if err := add(d); err != nil {
				return err
			}
		}
		if file != "" {
			order = append(order, file)
		}
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// dependencies reads the depends= line of a module's .modinfo section.
func dependencies(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("module %s: no .modinfo section", file)
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("module %s: .modinfo: %w", file, err)
	}
	for entry := range strings.SplitSeq(string(data), "\x00") {
		if v, ok := strings.CutPrefix(entry, "depends="); ok && v != "" {
			return strings.Split(v, ","), nil
		}
	}
	return nil, nil
}

// readBuiltin reads modules.builtin: a path such as kernel/net/x.ko a line.
func readBuiltin(path string) (map[string]bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("built-in modules: %w", err)
	}
	defer f.Close()
	names := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		names[canonical(strings.TrimSuffix(filepath.Base(lines.Text()), ".ko"))] = true
	}
	return names, lines.Err()
}

// canonical spells a module's name as the kernel does.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }
