// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// owner is what the index of an array means.
type owner int

const (
	ofService owner = iota
	ofBackend
	ofSlot
	ofNode // there is one element, and it stays mapped
	owners
)

// windowStep is by how many bytes a window grows: a multiple of every page size.
const windowStep = 256 << 10

// window is an array map in the agent's memory: its first part, as far as indexes are in use.
// What lies behind reads as zeros, as elements do that were never used, and cannot be
// written. Arrays are made for the biggest cluster, and mapped pages count as the agent's.
type window struct {
	fd      int
	mem     []byte // the address space of all elements
	element int    // bytes
	mapped  int    // bytes
}

// end returns how many bytes n elements need.
func (w *window) end(n uint32) int {
	return min(len(w.mem), (int(n)*w.element+windowStep-1)/windowStep*windowStep)
}

// shrink gives up what lies behind n elements. They stay as they are.
func (w *window) shrink(n uint32) error {
	end := w.end(n)
	if end >= w.mapped {
		return nil
	}
	const private = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE | unix.MAP_FIXED
	if _, err := unix.MmapPtr(-1, 0, unsafe.Pointer(&w.mem[end]), uintptr(len(w.mem)-end), unix.PROT_READ, private); err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	w.mapped = end
	return nil
}

// grow maps n elements.
func (w *window) grow(n uint32) error {
	end := w.end(n)
	if end <= w.mapped {
		return nil
	}
	const both = unix.PROT_READ | unix.PROT_WRITE
	at := unsafe.Pointer(&w.mem[w.mapped])
	if _, err := unix.MmapPtr(w.fd, int64(w.mapped), at, uintptr(end-w.mapped), both, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	w.mapped = end
	return nil
}

// shrink leaves the first n elements of what belongs to o mapped.
func (m *maps) shrink(o owner, n uint32) error {
	for _, w := range m.windows[o] {
		if err := w.shrink(n); err != nil {
			return err
		}
	}
	return nil
}

// grow maps the first n elements of what belongs to o.
func (m *maps) grow(o owner, n uint32) error {
	for _, w := range m.windows[o] {
		if err := w.grow(n); err != nil {
			return err
		}
	}
	return nil
}
