// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestUnchanged(t *testing.T) {
	entry := func(head, anonymous string) string {
		return head + "\nSize:  4 kB\nRss:  4 kB\nAnonymous:  " + anonymous + " kB\nVmFlags: rd mr mw me\n"
	}
	smaps := entry("00400000-00401000 r-xp 00000000 00:30 12 /bin/lbproxy", "0") +
		entry("00401000-00403000 r--p 00001000 00:30 12 /bin/lbproxy (deleted)", "0") +
		entry("00403000-00404000 r--p 00003000 00:30 12 /bin/lbproxy", "4") + // relocated
		entry("00404000-00405000 rw-p 00004000 00:30 12 /bin/lbproxy", "0") +
		entry("00500000-00501000 r--s 00000000 00:0f 13 anon_inode:bpf-map", "0") +
		entry("00501000-00502000 r--p 00000000 00:00 0", "0") +
		entry("7ffc0000-7ffd0000 r-xp 00000000 00:00 0 [vdso]", "0")
	want := []area{{0x400000, 0x401000}, {0x401000, 0x403000}}
	if got := unchanged([]byte(smaps)); !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// TestForgetFiles: a page of a file that was read is let go, and can be read again; one that
// was changed stays as it is.
func TestForgetFiles(t *testing.T) {
	file := t.TempDir() + "/file"
	page := os.Getpagesize()
	if err := os.WriteFile(file, []byte(strings.Repeat("x", page)), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var pages [2][]byte
	for i := range pages {
		if pages[i], err = unix.Mmap(int(f.Fd()), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Munmap(pages[i]) }()
	}
	pages[1][0] = 'y'
	for i := range pages {
		if err := unix.Mprotect(pages[i], unix.PROT_READ); err != nil {
			t.Fatal(err)
		}
	}
	if pages[0][0] != 'x' {
		t.Fatal("the file cannot be read")
	}
	if err := forgetFiles(); err != nil {
		t.Fatal(err)
	}
	if resident(t, pages[0]) {
		t.Error("the page that nobody changed was kept")
	}
	if pages[0][0] != 'x' || pages[1][0] != 'y' {
		t.Errorf("%c and %c, want x and y", pages[0][0], pages[1][0])
	}
}

// resident tells whether a page is in the memory of the process.
func resident(t *testing.T, page []byte) bool {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var word [8]byte
	if _, err := f.ReadAt(word[:], int64(uintptr(unsafe.Pointer(&page[0]))/uintptr(os.Getpagesize()))*8); err != nil {
		t.Fatal(err)
	}
	return word[7]&0x80 != 0 // present
}
