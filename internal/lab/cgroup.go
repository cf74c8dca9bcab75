package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// removeTimeout bounds the wait for killed processes to leave their cgroup.
const removeTimeout = 5 * time.Second

// cgroups is the lab's own subtree of the cgroup v2 hierarchy.
type cgroups struct {
	root          string
	hooked, other *os.File // open directories, for clone3
	more          []*os.File
}

// cgroup2Mount finds the cgroup v2 hierarchy, which hybrid systems keep beside v1.
func cgroup2Mount() (string, error) {
	f, err := os.Open("/proc/mounts")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if field := strings.Fields(sc.Text()); len(field) > 2 && field[2] == "cgroup2" {
			return field[1], nil
		}
	}
	return "", errors.New("find cgroup2: not mounted")
}

// newCgroups returns what it made also when it fails, for the caller to remove.
func newCgroups(name string) (cgroups, error) {
	var g cgroups
	mount, err := cgroup2Mount()
	if err != nil {
		return g, err
	}
	g.root = filepath.Join(mount, name)
	if err := os.Mkdir(g.root, 0o755); err != nil {
		return g, fmt.Errorf("cgroup %s: %w", name, err)
	}
	if g.hooked, err = openCgroup(g.root, "hooked"); err != nil {
		return g, err
	}
	g.other, err = openCgroup(g.root, "other")
	return g, err
}

func openCgroup(root, name string) (*os.File, error) {
	dir := filepath.Join(root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", dir, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", dir, err)
	}
	return f, nil
}

func (g cgroups) remove() error {
	for _, f := range append([]*os.File{g.hooked, g.other}, g.more...) {
		if f != nil {
			f.Close()
		}
	}
	if g.root == "" {
		return nil
	}
	return removeCgroup(g.root)
}

// removeCgroup kills every process below root and removes the tree.
func removeCgroup(root string) error {
	err := os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0)
	if gone(err) {
		return nil // another process sweeps too
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", root, err)
	}
	dirs, err := subdirs(root)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(removeTimeout)
	for _, dir := range slices.Backward(dirs) {
		err := unix.Rmdir(dir)
		for errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
			err = unix.Rmdir(dir)
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// subdirs lists root and all directories below it, parents first.
func subdirs(root string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil && !gone(err) {
		return nil, fmt.Errorf("list cgroup %s: %w", root, err)
	}
	return dirs, nil
}

// gone reports whether err says that a cgroup does not exist, or no longer.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }
