// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is what the numbers depend on.
type machine struct {
	Time       time.Time `json:"time"`
	Kernel     string    `json:"kernel"`
	CPU        string    `json:"cpu"`
	CPUs       int       `json:"cpus"`
	Congestion string    `json:"tcpCongestionControl"` // in the lab's namespaces
	Jit        string    `json:"bpfJit"`
	Harden     string    `json:"bpfJitHarden"`
	Go         string    `json:"go"`
	LoadBefore string    `json:"loadBefore"`
	LoadAfter  string    `json:"loadAfter"`
}

func thisMachine() machine {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail
	return machine{
		Time:       time.Now().UTC().Truncate(time.Second),
		Kernel:     unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:]),
		CPU:        cpuModel(),
		CPUs:       runtime.NumCPU(),
		Jit:        readWord("/proc/sys/net/core/bpf_jit_enable"),
		Harden:     readWord("/proc/sys/net/core/bpf_jit_harden"),
		Go:         runtime.Version(),
		LoadBefore: load(),
	}
}

// readWord returns a file's text, or a question mark.
func readWord(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}

// load is the load average of 1, 5 and 15 minutes: others on this machine.
func load() string {
	fields := strings.Fields(readWord("/proc/loadavg"))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "?"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "?"
}
