// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Cleanup removes everything that lbproxy has in this node's kernel, for every
// layout version, and says what it removed. Nothing is balanced afterwards. It
// returns an error that wraps ErrRunning while an agent runs.
func Cleanup(opts Options) (removed []string, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("root is needed")
	}
	if opts.BPFFS == "" || opts.BPFFS == defaultBPFFS {
		if _, err := os.Stat(stateDir(defaultBPFFS)); errors.Is(err, os.ErrNotExist) {
			return cleanupFilters() // a node that cannot run it may have no bpffs, and no cgroup
		}
	}
	if opts, err = opts.orDefault(); err != nil {
		return nil, err
	}
	if err := requireFilesystems(opts); err != nil {
		return nil, err
	}
	locks, err := lockAll(opts.CgroupRoot, opts.BPFFS)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range locks {
			err = errors.Join(err, f.Close())
		}
	}()
	return cleanupAll(opts)
}

// cleanupAll is Cleanup for who has the locks.
func cleanupAll(opts Options) (removed []string, err error) {
	removed, errFilters := cleanupFilters()
	pins, errPins := cleanupPins(stateDir(opts.BPFFS))
	return append(removed, pins...), errors.Join(errFilters, errPins)
}

// stateDir is where everything that lbproxy keeps is pinned below a bpffs mount.
func stateDir(bpffs string) string { return filepath.Join(bpffs, "lbproxy") }

// cleanupFilters removes clsact filters from all devices.
func cleanupFilters() (removed []string, err error) {
	links, err := linkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, l := range links {
		found, err := detachClsact(l.Attrs().Index)
		if err != nil {
			errs = append(errs, fmt.Errorf("device %s: %w", l.Attrs().Name, err))
		}
		if found {
			removed = append(removed, "filters of device "+l.Attrs().Name)
		}
	}
	return removed, errors.Join(errs...)
}

// removePin detaches a link now, where the kernel would do it some time after the
// last reference is gone, and removes the pin.
func removePin(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return os.Remove(path) // a map, or a link of which nothing is left
	}
	err = l.Detach()
	if errors.Is(err, unix.ENOLINK) || errors.Is(err, ebpf.ErrNotSupported) {
		err = nil // its device is gone
	}
	return errors.Join(err, l.Unpin(), l.Close())
}

// cleanupPins removes all pins.
func cleanupPins(root string) (removed []string, err error) {
	layouts, err := filepath.Glob(filepath.Join(root, "*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range layouts {
		pins, err := cleanupLayout(dir)
		if removed = append(removed, pins...); err != nil {
			return removed, err
		}
	}
	return removed, os.RemoveAll(root)
}

// cleanupLayout removes the pins of one layout version; links go first, so that no
// program runs when the tables vanish.
func cleanupLayout(dir string) (removed []string, err error) {
	for _, sub := range []string{"links/*", "maps/*"} {
		paths, err := filepath.Glob(filepath.Join(dir, sub))
		if err != nil {
			return removed, err
		}
		for _, p := range paths {
			if err := removePin(p); err != nil {
				return removed, fmt.Errorf("remove %s: %w", p, err)
			}
			removed = append(removed, p)
		}
	}
	return removed, os.RemoveAll(dir)
}
