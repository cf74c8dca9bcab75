// SPDX-License-Identifier: Apache-2.0

// Package observe tells what the benches need to know of this machine and of a
// program that runs in a lab.
package observe

import (
	"bufio"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what the numbers depend on.
type Machine struct {
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

// ThisMachine returns what is known before anything is measured.
func ThisMachine() Machine {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail
	return Machine{
		Time:       time.Now().UTC().Truncate(time.Second),
		Kernel:     unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:]),
		CPU:        cpuModel(),
		CPUs:       runtime.NumCPU(),
		Jit:        ReadWord("/proc/sys/net/core/bpf_jit_enable"),
		Harden:     ReadWord("/proc/sys/net/core/bpf_jit_harden"),
		Go:         runtime.Version(),
		LoadBefore: Load(),
	}
}

// ReadWord returns a file's text, or a question mark.
func ReadWord(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}

// Load is the load average of 1, 5 and 15 minutes: others on this machine.
func Load() string {
	fields := strings.Fields(ReadWord("/proc/loadavg"))
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
