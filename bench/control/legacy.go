// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// legacy sees changes of the legacy backend, of which the kernel tells nobody. Every
// program that changes a table holds a lock file until it ends: when somebody let go of
// it, table nat is read, and a new pod is found there by the bytes of its address. The
// time is that of the end of the program, which is what the next one waits for.
type legacy struct {
	watch, socket int
	pending       map[netip.Addr]bool
	table         []byte
}

// The kernel's names: uapi/linux/netfilter_ipv4/ip_tables.h.
const (
	iptGetInfo     = 64
	iptGetEntries  = 65
	iptInfoSize    = 84 // of struct ipt_getinfo; its last word is the size of the table
	iptEntriesSize = 40 // of struct ipt_get_entries, without the table
)

func newLegacy(p *place) (_ *legacy, err error) {
	d := &legacy{watch: -1, socket: -1, pending: map[netip.Addr]bool{}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("legacy tables: %w", errors.Join(err, d.close()))
		}
	}()
	if d.watch, err = unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC); err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(d.watch, p.Lock(), unix.IN_CLOSE_WRITE|unix.IN_CLOSE_NOWRITE); err != nil {
		return nil, err
	}
	return d, p.Lab.Host(lab.Node).Do(func() (err error) {
		d.socket, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
}

func (d *legacy) expect(_ int, addr netip.Addr) { d.pending[addr] = true }

func (d *legacy) arrived() (map[netip.Addr]time.Time, error) {
	var events [4096]byte
	n, err := unix.Read(d.watch, events[:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil, nil
	}
	if err != nil || n == 0 || len(d.pending) == 0 {
		return nil, err
	}
	now := time.Now()
	table, err := d.read()
	if err != nil {
		return nil, fmt.Errorf("legacy table nat: %w", err)
	}
	got := map[netip.Addr]time.Time{}
	for addr := range newPods(table) {
		if d.pending[addr] {
			delete(d.pending, addr)
			got[addr] = now
		}
	}
	return got, nil
}

// read returns table nat as the kernel has it.
func (d *legacy) read() ([]byte, error) {
	for {
		info := make([]byte, iptInfoSize)
		copy(info, "nat")
		if err := d.get(iptGetInfo, info); err != nil {
			return nil, err
		}
		size := binary.NativeEndian.Uint32(info[iptInfoSize-4:])
		need := iptEntriesSize + int(size)
		if len(d.table) < need {
			d.table = make([]byte, need+need/4)
		}
		table := d.table[:need]
		clear(table[:iptEntriesSize])
		copy(table, "nat")
		binary.NativeEndian.PutUint32(table[32:], size)
		switch err := d.get(iptGetEntries, table); {
		case err == nil:
			return table[iptEntriesSize:], nil
		case !errors.Is(err, unix.EAGAIN): // that is: it has another size now
			return nil, err
		}
	}
}

func (d *legacy) get(option int, b []byte) error {
	n := uint32(len(b))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(d.socket), unix.SOL_IP, uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return os.NewSyscallError("getsockopt", e)
	}
	return nil
}

// newPods yields every place in b that looks like the address of a new pod.
func newPods(b []byte) func(yield func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		for {
			i := bytes.Index(b, newPrefix[:])
			if i < 0 || i+4 > len(b) || !yield(netip.AddrFrom4([4]byte(b[i:i+4]))) {
				return
			}
			b = b[i+1:]
		}
	}
}

// pause is short beside what a program takes that writes a whole table.
func (d *legacy) pause() time.Duration { return 200 * time.Microsecond }

func (d *legacy) close() error {
	var errs []error
	for _, fd := range []int{d.watch, d.socket} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
