// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// File types in the mode field of a cpio entry.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeChar = 0o020000
	modeLink = 0o120000
	modeType = 0o170000
)

// archive writes a cpio archive in the "newc" format the kernel unpacks.
// Parents are made on demand. The first error sticks and Close returns it.
// Source: Documentation/driver-api/early-userspace/buffer-format.rst.
type archive struct {
	w    io.Writer
	ino  int
	dirs map[string]bool
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: w, dirs: map[string]bool{".": true}}
}

// entry writes a header and size bytes of body. rdev is the minor number of a
// character device of major 5; other entries ignore it.
func (a *archive) entry(name string, mode, rdev int, size int64, body io.Reader) {
	if a.err != nil {
		return
	}
	if size > 1<<32-1 {
		a.err = fmt.Errorf("%s: %d bytes do not fit a cpio entry", name, size)
		return
	}
	a.ino++
	major := 0
	if mode&modeType == modeChar {
		major = 5
	}
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, size, 0, 0, major, rdev, len(name)+1, 0, name)
	if _, a.err = io.WriteString(a.w, head+padding(len(head))); a.err != nil {
		return
	}
	if _, err := io.CopyN(a.w, body, size); err != nil {
		a.err = fmt.Errorf("%s: copy %d bytes: %w", name, size, err)
		return
	}
	_, a.err = io.WriteString(a.w, padding(int(size%4)))
}

// padding returns the zeros that bring n up to a multiple of four.
func padding(n int) string { return "\x00\x00\x00"[:(4-n%4)%4] }

// Dir adds a directory and its parents, each once.
func (a *archive) Dir(name string) {
	name = path.Clean(strings.TrimPrefix(name, "/"))
	if a.dirs[name] {
		return
	}
	a.Dir(path.Dir(name))
	a.dirs[name] = true
	a.entry(name, modeDir|0o755, 0, 0, strings.NewReader(""))
}

// parent makes the directory of name and returns name as cpio spells it.
func (a *archive) parent(name string) string {
	a.Dir(path.Dir(path.Clean("/" + name)))
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// Text adds a file with the given contents.
func (a *archive) Text(name string, perm int, text string) {
	a.entry(a.parent(name), modeFile|perm, 0, int64(len(text)), strings.NewReader(text))
}

// Link adds a symbolic link.
func (a *archive) Link(name, target string) {
	a.entry(a.parent(name), modeLink|0o777, 0, int64(len(target)), strings.NewReader(target))
}

// Tty adds a character device of major 5, such as the console (minor 1).
func (a *archive) Tty(name string, minor int) {
	a.entry(a.parent(name), modeChar|0o600, minor, 0, strings.NewReader(""))
}

// Copy adds a host file, or a directory with all files below it. Symbolic
// links are followed for files and skipped for directories.
func (a *archive) Copy(name, host string) {
	if a.err != nil {
		return
	}
	a.err = filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(host, p)
		if err != nil {
			return err
		}
		st, err := os.Stat(p)
		switch {
		case err != nil:
			return err
		case d.IsDir():
			a.Dir(path.Join(name, rel))
		case st.Mode().IsRegular():
			a.file(path.Join(name, rel), p, st)
		}
		return a.err
	})
}

// file adds one regular host file.
func (a *archive) file(name, host string, st fs.FileInfo) {
	f, err := os.Open(host)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	a.entry(a.parent(name), modeFile|int(st.Mode().Perm()), 0, st.Size(), f)
}

// Close ends the archive and returns the first error; it leaves w open.
func (a *archive) Close() error {
	a.entry("TRAILER!!!", 0, 0, 0, strings.NewReader(""))
	return a.err
}
