// SPDX-License-Identifier: Apache-2.0

// Package netns finds network namespaces of the node by their inode numbers, and
// runs functions in them.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is an open network namespace. It lives at least until it is closed.
type Namespace struct {
	file  *os.File
	inode uint32
}

// Current opens the network namespace of the calling thread.
func Current() (*Namespace, error) {
	return open("/proc/thread-self/ns/net")
}

// open opens a network namespace by a path. Anything else at the path is an error.
func open(path string) (*Namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	n, err := fromFile(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

func fromFile(f *os.File) (*Namespace, error) {
	fd := int(f.Fd())
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, errors.New("not a network namespace")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	return &Namespace{file: f, inode: uint32(st.Ino)}, nil
}

// Inode returns the namespace's number, as in net:[4026531840].
func (n *Namespace) Inode() uint32 { return n.inode }

// Close releases the namespace.
func (n *Namespace) Close() error { return n.file.Close() }

// Do runs f on a thread inside the namespace. Sockets that f makes belong to it, and
// stay there; goroutines that f starts are not inside. The thread is thrown away if it
// cannot be brought back.
func (n *Namespace) Do(f func() error) error {
	return away(func() error { return n.inside(f) })
}

// Each is Do in one namespace after the other, on one thread: on a busy machine the
// switches between threads would take longer than what is done. It returns the errors of
// those that failed.
func Each(all map[uint32]*Namespace, f func(inode uint32) error) map[uint32]error {
	failed := map[uint32]error{}
	err := away(func() error {
		for inode, n := range all {
			if err := n.inside(func() error { return f(inode) }); err != nil {
				failed[inode] = err
			}
		}
		return nil
	})
	if err != nil {
		for inode := range all {
			failed[inode] = err
		}
	}
	return failed
}

// away runs f on a thread that may go into other namespaces.
func away(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := Current()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("own network namespace: %w", err)
			return
		}
		defer home.Close()
		err = f()
		if home.enter() == nil {
			runtime.UnlockOSThread()
		} // otherwise it ends with this goroutine
		done <- err
	}()
	return <-done
}

func (n *Namespace) inside(f func() error) error {
	if err := n.enter(); err != nil {
		return err
	}
	return f()
}

// enter moves the calling thread.
func (n *Namespace) enter() error {
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %d: %w", n.inode, err)
	}
	return nil
}
