// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWindow: what a window gives up reads as zeros, and what it maps again is what is there
// now. Elements that are kept are never touched.
func TestWindow(t *testing.T) {
	const element, elements = 24, 3*windowStep/24 + 100 // the last step is not a whole one
	fd, err := unix.MemfdCreate("window", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	page := unix.Getpagesize()
	size := element * elements
	if err := unix.Ftruncate(fd, int64((size+page-1)/page*page)); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	w := &window{fd: fd, mem: mem, element: element, mapped: size}
	at := func(i int) []byte { return mem[i*element : (i+1)*element] }
	write := func(i int, n uint64) { // as the kernel does
		if _, err := unix.Pwrite(fd, binary.NativeEndian.AppendUint64(nil, n), int64(i*element)); err != nil {
			t.Fatal(err)
		}
	}
	write(0, 1)
	write(elements-1, 2)
	if err := w.shrink(1); err != nil {
		t.Fatal(err)
	}
	if binary.NativeEndian.Uint64(at(0)) != 1 || !bytes.Equal(at(elements-1), make([]byte, element)) {
		t.Errorf("shrunk: the first element is %x, the last one %x", at(0), at(elements-1))
	}
	write(0, 3)
	for _, n := range []uint32{1, 1 + windowStep/element, 2 * windowStep / element, elements} {
		if err := w.grow(n); err != nil {
			t.Fatal(err)
		}
		if w.mapped < min(size, int(n)*element) || w.mapped > int(n)*element+windowStep {
			t.Errorf("%d elements: %d bytes are mapped", n, w.mapped)
		}
		at(int(n) - 1)[8] = 7 // it can be written
		if binary.NativeEndian.Uint64(at(0)) != 3 {
			t.Errorf("%d elements: the first one is %x", n, at(0))
		}
	}
	if binary.NativeEndian.Uint64(at(elements-1)) != 2 {
		t.Errorf("grown: the last element is %x", at(elements-1))
	}
}
