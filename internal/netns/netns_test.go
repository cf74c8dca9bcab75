// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// own is the namespace that the tests run in.
func own(t *testing.T) uint32 {
	t.Helper()
	n, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	return n.Inode()
}

// tree writes files below a directory; a content that starts with -> is a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if target, ok := strings.CutPrefix(content, "->"); ok && err == nil {
			err = os.Symlink(target, path)
		} else if err == nil {
			err = os.WriteFile(path, []byte(strings.ReplaceAll(content, "DIR", dir)), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestFind looks for a namespace in all places where it may be, and at what only
// looks like it.
func TestFind(t *testing.T) {
	inode := own(t)
	link, here := fmt.Sprintf("net:[%d]", inode), "->/proc/self/ns/net"
	mount := func(root, path string) string {
		return "22 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n" +
			"31 22 0:4 " + root + " " + path + " rw shared:2 - nsfs nsfs rw\n"
	}
	for _, tc := range []struct {
		name    string
		files   map[string]string
		found   bool
		members map[uint32]uint32
	}{
		{"mounted here", map[string]string{
			"self/mountinfo": mount(link, "DIR/pod"), "pod": here}, true, nil},
		{"mounted at a path with a blank", map[string]string{
			"self/mountinfo": mount(link, `DIR/a\040pod`), "a pod": here}, true, nil},
		{"mounted where process 1 is", map[string]string{
			"self/mountinfo": "", "1/mountinfo": mount(link, "/run/pod"), "1/root/run/pod": here}, true, nil},
		{"of a process", map[string]string{
			"self/mountinfo": "", "1/mountinfo": "", "17/ns/net": "->" + link, "17/ns/" + link: here}, true, nil},
		{"of a process, mounts cannot be read", map[string]string{
			"17/ns/net": "->" + link, "17/ns/" + link: here}, true, nil},
		{"hidden by another mount, but of a process", map[string]string{
			"self/mountinfo": mount(link, "DIR/pod"), "pod": "->/proc/self/ns/uts",
			"1/mountinfo": "", "17/ns/net": "->" + link, "17/ns/" + link: here}, true, nil},
		{"mounted, then gone", map[string]string{
			"self/mountinfo": mount(link, "DIR/pod"), "1/mountinfo": ""}, false, nil},
		{"another inode", map[string]string{
			"self/mountinfo": mount(fmt.Sprintf("net:[%d]", inode+1), "DIR/pod"), "pod": here,
			"1/mountinfo": ""}, false, nil},
		{"another namespace now", map[string]string{
			"self/mountinfo": mount(link, "DIR/pod"), "pod": "->/proc/self/ns/mnt",
			"1/mountinfo": ""}, false, nil},
		{"of a process that is told", map[string]string{
			"self/mountinfo": "", "18/ns/net": here}, true, map[uint32]uint32{inode: 18, inode + 1: 17}},
		{"of a process that is told, but gone", map[string]string{
			"self/mountinfo": "", "1/mountinfo": "",
			"17/ns/net": "->" + link, "17/ns/" + link: here}, true, map[uint32]uint32{inode: 18}},
		{"not a process", map[string]string{
			"self/mountinfo": "", "1/mountinfo": "", "sys/ns/net": "->" + link, "sys/ns/" + link: here}, false, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			found, err := find(tree(t, tc.files), []uint32{inode}, func() (map[uint32]uint32, error) { return tc.members, nil })
			if err != nil {
				t.Fatal(err)
			}
			n := found[inode]
			if (n != nil) != tc.found {
				t.Fatalf("found %v, want found: %v", found, tc.found)
			}
			if n == nil {
				return
			}
			defer n.Close()
			if n.Inode() != inode {
				t.Errorf("found namespace %d, want %d", n.Inode(), inode)
			}
		})
	}
}

// TestFindTellsWhatItCouldNotSee: a namespace that is not found may be in what could
// not be read.
func TestFindTellsWhatItCouldNotSee(t *testing.T) {
	proc := tree(t, map[string]string{"1/mountinfo": ""})
	found, err := find(proc, []uint32{1}, nil)
	if len(found) != 0 || err == nil || !strings.Contains(err.Error(), "self/mountinfo") {
		t.Errorf("found %v, error %v, want nothing and an error that names self/mountinfo", found, err)
	}
}

// TestFindReal finds the own namespace in /proc: this process is in it.
func TestFindReal(t *testing.T) {
	inode := own(t)
	found, err := Find([]uint32{inode, 1}, nil)
	if found[inode] == nil {
		t.Fatalf("found %v, error %v, want namespace %d", found, err, inode)
	}
	found[inode].Close()
	if found[1] != nil {
		t.Error("found namespace 1, which cannot be")
	}
}

// TestOpenRefusesOthers: only network namespaces are opened.
func TestOpenRefusesOthers(t *testing.T) {
	for _, path := range []string{"/proc/self/ns/uts", "/dev/null", "/proc/self/ns"} {
		if n, err := open(path); err == nil {
			t.Errorf("opened %s as network namespace %d", path, n.Inode())
		}
	}
}

// TestFindChecks: a path that leads to another network namespace by now is not taken.
func TestFindChecks(t *testing.T) {
	other := own(t) + 1
	link := fmt.Sprintf("net:[%d]", other)
	proc := tree(t, map[string]string{
		"self/mountinfo": "31 22 0:4 " + link + " DIR/pod rw shared:2 - nsfs nsfs rw\n",
		"pod":            "->/proc/self/ns/net",
		"1/mountinfo":    "",
	})
	members := func() (map[uint32]uint32, error) { return map[uint32]uint32{other: 17}, nil }
	if err := os.MkdirAll(filepath.Join(proc, "17/ns"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/ns/net", filepath.Join(proc, "17/ns/net")); err != nil {
		t.Fatal(err)
	}
	found, err := find(proc, []uint32{other}, members)
	if err != nil || len(found) != 0 {
		t.Errorf("found %v, error %v, want nothing: the namespace is %d", found, err, other-1)
	}
}
