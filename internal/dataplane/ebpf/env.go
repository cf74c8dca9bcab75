// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/privilege"
)

// cgroupMount finds the cgroup v2 mount in a mount table. Hybrid systems have it
// elsewhere than at /sys/fs/cgroup.
func cgroupMount(mounts string) (string, error) {
	f, err := os.Open(mounts)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.New("no cgroup v2 mount in " + mounts +
		": mount one (mount -t cgroup2 none /sys/fs/cgroup) or name a directory of one with --cgroup-root")
}

// requireFilesystems checks that the directories are what they should be.
// privileges are the capabilities that the dataplane cannot do without: for maps and
// programs, to attach those, and for what they read of sockets.
var privileges = []privilege.Capability{privilege.BPF, privilege.NetAdmin, privilege.Perfmon}

// podPrivileges are those by which sockets in other network namespaces are ended: to enter
// these, and to find them by the processes in them.
var podPrivileges = []privilege.Capability{privilege.SysAdmin, privilege.SysPtrace}

// lacksForPods says what the agent cannot do without podPrivileges, or nothing.
func lacksForPods() string {
	missing, err := privilege.Missing(podPrivileges...)
	if err != nil || len(missing) == 0 {
		return ""
	}
	return "UDP sockets in pods that are connected to endpoints that are gone stay until their processes connect again: " +
		"to close them lbproxy needs " + privilege.Names(missing) + ", which it lacks"
}

// requirePrivileges returns an error that says what this process lacks.
func requirePrivileges() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the eBPF dataplane needs root (%s)", privilege.Names(privileges))
	}
	return privilege.Require("the eBPF dataplane", privileges...)
}

func requireFilesystems(o Options) error {
	if err := requireFS(o.CgroupRoot, unix.CGROUP2_SUPER_MAGIC); err != nil {
		return fmt.Errorf("cgroup root %s is not in a cgroup v2 mount: %w", o.CgroupRoot, err)
	}
	if err := requireFS(o.BPFFS, unix.BPF_FS_MAGIC); err != nil {
		return fmt.Errorf("%s is not a bpffs (mount -t bpf bpf %s): %w", o.BPFFS, o.BPFFS, err)
	}
	return nil
}

// MountBPFFS mounts a bpffs at dir, which exists, unless there is one. It tells whether it
// did. It needs CAP_SYS_ADMIN.
func MountBPFFS(dir string) (mounted bool, err error) {
	if requireFS(dir, unix.BPF_FS_MAGIC) == nil {
		return false, nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return false, fmt.Errorf("mount a bpffs at %s: %w", dir, err)
	}
	return true, nil
}

func requireFS(dir string, magic int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if int64(st.Type) != magic {
		return fmt.Errorf("file system type 0x%x: want 0x%x", st.Type, magic)
	}
	return nil
}

// lockAll takes the locks that keep two agents apart: one on the cgroup, one on
// the pins. They end with the process.
func lockAll(cgroup, bpffs string) (locks []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range locks {
				f.Close()
			}
			locks = nil
		}
	}()
	pins := filepath.Join(bpffs, "lbproxy")
	if err := os.MkdirAll(pins, 0o755); err != nil {
		return nil, fmt.Errorf("create %s: %w", pins, err)
	}
	for _, dir := range []string{cgroup, pins} {
		f, err := os.Open(dir)
		if err != nil {
			return locks, err
		}
		locks = append(locks, f)
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case errors.Is(err, unix.EWOULDBLOCK):
			return locks, fmt.Errorf("%w: it holds the lock on %s", ErrRunning, dir)
		case err != nil:
			return locks, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
	return locks, nil
}
