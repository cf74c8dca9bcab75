// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Find opens the network namespaces that have the given inode numbers. It looks where
// namespaces are mounted, as /run/netns is by those who set up pods, in this mount
// namespace and in that of process 1, and at processes. To see those of a node from a
// container, the container has to share the node's process ids.
//
// members, which may be nil, tells a process in each namespace: to look at every
// process takes 10 us for each. It need not be right.
//
// A namespace that is not found is missing from the result: it may be gone. An error
// tells why some may not have been found; the result is valid all the same. Who calls
// closes what is in it.
func Find(inodes []uint32, members func() (map[uint32]uint32, error)) (map[uint32]*Namespace, error) {
	return find("/proc", inodes, members)
}

// finder collects the namespaces that are wanted.
type finder struct {
	proc    string
	missing map[uint32]bool
	found   map[uint32]*Namespace
}

// find is Find with another directory in the place of /proc.
func find(proc string, inodes []uint32, members func() (map[uint32]uint32, error)) (map[uint32]*Namespace, error) {
	f := &finder{proc: proc, missing: map[uint32]bool{}, found: map[uint32]*Namespace{}}
	for _, i := range inodes {
		f.missing[i] = true
	}
	var errs []error
	for _, look := range []func() error{
		func() error { return f.mounts("self", "") },
		func() error { return f.members(members) },
		func() error { return f.mounts("1", filepath.Join(proc, "1/root")) },
		f.processes,
	} {
		if len(f.missing) == 0 {
			break
		}
		if err := look(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(f.missing) == 0 {
		return f.found, nil
	}
	return f.found, errors.Join(errs...)
}

// members looks at the processes that should be in what is missing.
func (f *finder) members(tell func() (map[uint32]uint32, error)) error {
	if tell == nil {
		return nil
	}
	pids, err := tell()
	if err != nil {
		return fmt.Errorf("processes by network namespace: %w", err)
	}
	for inode, pid := range pids {
		if f.missing[inode] {
			f.take(inode, filepath.Join(f.proc, strconv.FormatUint(uint64(pid), 10), "ns/net"))
		}
	}
	return nil
}

// take opens a path that should lead to a namespace that is missing. Whatever is gone
// meanwhile, or hidden by another mount, is left out.
func (f *finder) take(inode uint32, path string) {
	n, err := open(path)
	if err != nil {
		return
	}
	if n.inode != inode {
		n.Close()
		return
	}
	delete(f.missing, inode)
	f.found[inode] = n
}

// mounts looks at the namespaces that are mounted where a process is; root is how its
// files are reached.
func (f *finder) mounts(pid, root string) error {
	file, err := os.Open(filepath.Join(f.proc, pid, "mountinfo"))
	if err != nil {
		return fmt.Errorf("mounted network namespaces: %w", err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() && len(f.missing) > 0 {
		if inode, path, ok := parseMount(lines.Text()); ok && f.missing[inode] {
			f.take(inode, root+path)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("mounted network namespaces: read %s: %w", file.Name(), err)
	}
	return nil
}

// parseMount returns which network namespace a line of mountinfo mounts, and where.
// The line is: id parent major:minor root path ...
func parseMount(line string) (inode uint32, path string, ok bool) {
	if !strings.Contains(line, " net:[") {
		return 0, "", false
	}
	fields := strings.Fields(line)
	if len(fields) < 5 {
		return 0, "", false
	}
	inode, ok = parseLink(fields[3])
	return inode, unescape(fields[4]), ok
}

// unescape replaces what mountinfo writes as a backslash and three octal digits.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parseLink returns the inode number of a link such as net:[4026531840].
func parseLink(link string) (uint32, bool) {
	number, ok := strings.CutPrefix(link, "net:[")
	if !ok || !strings.HasSuffix(number, "]") {
		return 0, false
	}
	n, err := strconv.ParseUint(number[:len(number)-1], 10, 32)
	return uint32(n), err == nil
}

// processes looks at the namespaces that processes are in. Those that end meanwhile,
// or may not be looked at, are passed over.
func (f *finder) processes() error {
	dir, err := os.Open(f.proc)
	if err != nil {
		return fmt.Errorf("network namespaces of processes: %w", err)
	}
	defer dir.Close()
	var denied error
	link := make([]byte, 64)
	for len(f.missing) > 0 {
		names, err := dir.Readdirnames(1024)
		if len(names) == 0 {
			if !errors.Is(err, io.EOF) {
				denied = errors.Join(denied, fmt.Errorf("network namespaces of processes: %w", err))
			}
			return denied
		}
		for _, name := range names {
			if name[0] < '1' || name[0] > '9' {
				continue
			}
			n, err := unix.Readlinkat(int(dir.Fd()), name+"/ns/net", link)
			if errors.Is(err, unix.EACCES) {
				denied = fmt.Errorf("network namespace of process %s: %w", name, err)
			}
			if err != nil {
				continue
			}
			if inode, ok := parseLink(string(link[:n])); ok && f.missing[inode] {
				f.take(inode, filepath.Join(f.proc, name, "ns/net"))
			}
		}
	}
	return nil
}
