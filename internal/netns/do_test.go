// SPDX-License-Identifier: Apache-2.0

//go:build root

package netns

import (
	"errors"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
)

// stranger starts a process in a network namespace of its own, which is mounted nowhere.
func stranger(t *testing.T) (inode uint32) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "echo ready; read line")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait() // read fails at the end of its input
	})
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	n, err := open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	return n.Inode()
}

// TestDo runs a function in a namespace that only a process keeps, and is back
// afterwards.
func TestDo(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, inode := own(t), stranger(t)
	found, err := Find([]uint32{inode, home}, nil)
	if err != nil || len(found) != 2 {
		t.Fatalf("found %v, error %v, want %d and %d", found, err, inode, home)
	}
	for _, n := range found {
		defer n.Close()
	}
	sentinel := errors.New("sentinel")
	for range 20 { // threads are used again
		var inside uint32
		err := found[inode].Do(func() error {
			inside = own(t)
			return sentinel
		})
		if !errors.Is(err, sentinel) || inside != inode {
			t.Fatalf("ran in namespace %d with error %v, want %d and the function's error", inside, err, inode)
		}
		back := make(chan uint32)
		go func() { back <- own(t) }()
		if got := <-back; got != home {
			t.Fatalf("a goroutine runs in namespace %d, want %d", got, home)
		}
	}
}

// TestDoClosed: a namespace that cannot be entered runs nothing.
func TestDoClosed(t *testing.T) {
	n, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	ran := false
	if err := n.Do(func() error { ran = true; return nil }); err == nil || ran {
		t.Errorf("error %v, ran %v, want an error only", err, ran)
	}
}

// BenchmarkProcesses looks at every process of the machine for a namespace that none
// is in.
func BenchmarkProcesses(b *testing.B) {
	for b.Loop() {
		f := &finder{proc: "/proc", missing: map[uint32]bool{1: true}, found: map[uint32]*Namespace{}}
		_ = f.processes() // it may not be allowed to look at some
	}
}

// TestEach goes through namespaces, and on where one cannot be entered.
func TestEach(t *testing.T) {
	inodes := []uint32{own(t), stranger(t), stranger(t)}
	found, err := Find(inodes, nil)
	if err != nil || len(found) != len(inodes) {
		t.Fatalf("found %v, error %v, want %v", found, err, inodes)
	}
	found[inodes[2]].Close() // nobody enters it any more
	sentinel := errors.New("sentinel")
	inside := map[uint32]uint32{}
	failed := Each(found, func(inode uint32) error {
		inside[inode] = own(t)
		if inode == inodes[1] {
			return sentinel
		}
		return nil
	})
	if len(inside) != 2 || inside[inodes[0]] != inodes[0] || inside[inodes[1]] != inodes[1] {
		t.Errorf("ran in %v, want each of %v in its own", inside, inodes[:2])
	}
	if len(failed) != 2 || !errors.Is(failed[inodes[1]], sentinel) || failed[inodes[2]] == nil {
		t.Errorf("failed: %v, want those of %v", failed, inodes[1:])
	}
	for _, i := range inodes[:2] {
		found[i].Close()
	}
}
