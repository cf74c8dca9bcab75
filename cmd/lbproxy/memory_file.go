// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// area is a part of the process's memory.
type area struct{ from, to uintptr }

// forgetFiles makes the process let go of pages of the program that it has read so far: half
// of them are needed by the start only. They stay in the page cache, from which those that
// are needed again come back when they are touched, and the kernel can take the others.
func forgetFiles() error {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("memory of the program: %w", err)
	}
	for _, a := range unchanged(smaps) {
		if _, _, err := unix.Syscall(unix.SYS_MADVISE, a.from, a.to-a.from, unix.MADV_DONTNEED); err != 0 {
			return fmt.Errorf("memory of the program: %w", os.NewSyscallError("madvise", err))
		}
	}
	return nil
}

// unchanged returns the areas that are private, cannot be written, and are exactly what a
// file says: of no page there is a copy that would be lost.
func unchanged(smaps []byte) (list []area) {
	var a area
	candidate := false
	for line := range bytes.Lines(smaps) {
		f := strings.Fields(string(line))
		switch {
		case len(f) >= 5 && strings.Contains(f[0], "-"): // from-to rwxp offset device inode path
			from, to, _ := strings.Cut(f[0], "-")
			start, one := strconv.ParseUint(from, 16, 64)
			end, two := strconv.ParseUint(to, 16, 64)
			a = area{uintptr(start), uintptr(end)}
			candidate = one == nil && two == nil && (f[1] == "r-xp" || f[1] == "r--p") && len(f) > 5 && strings.HasPrefix(f[5], "/")
		case candidate && len(f) == 3 && f[0] == "Anonymous:":
			if f[1] == "0" {
				list = append(list, a)
			}
			candidate = false
		}
	}
	return list
}
