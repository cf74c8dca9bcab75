// SPDX-License-Identifier: Apache-2.0

// Package privilege tells which of the kernel's capabilities this process lacks, so that
// whoever needs one can say its name in place of "operation not permitted".
package privilege

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Capability is one of the kernel's, by its number.
type Capability uint

// Those that lbproxy uses.
const (
	NetAdmin  Capability = unix.CAP_NET_ADMIN
	NetRaw    Capability = unix.CAP_NET_RAW
	SysPtrace Capability = unix.CAP_SYS_PTRACE
	SysAdmin  Capability = unix.CAP_SYS_ADMIN
	Perfmon   Capability = unix.CAP_PERFMON
	BPF       Capability = unix.CAP_BPF
)

// String returns its name, as in capabilities(7).
func (c Capability) String() string {
	switch c {
	case NetAdmin:
		return "CAP_NET_ADMIN"
	case NetRaw:
		return "CAP_NET_RAW"
	case SysPtrace:
		return "CAP_SYS_PTRACE"
	case SysAdmin:
		return "CAP_SYS_ADMIN"
	case Perfmon:
		return "CAP_PERFMON"
	case BPF:
		return "CAP_BPF"
	}
	return fmt.Sprintf("capability %d", uint(c))
}

// Missing returns those of want that are not effective in the calling thread, or an
// error if the kernel does not tell.
func Missing(want ...Capability) ([]Capability, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // 32 each
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, fmt.Errorf("capabilities: %w", err)
	}
	has := func(c Capability) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	var missing []Capability
	for _, c := range want {
		// The kernel takes CAP_SYS_ADMIN for what was split off it in Linux 5.8.
		if split := c == BPF || c == Perfmon; !has(c) && (!split || !has(SysAdmin)) {
			missing = append(missing, c)
		}
	}
	return missing, nil
}

// Require returns an error that names those of want that the calling thread lacks and who
// needs them. Where the kernel does not tell, nothing is missing: what needs it will fail.
func Require(who string, want ...Capability) error {
	missing, err := Missing(want...)
	if err != nil || len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%s needs %s, which this process lacks: add it to the container's capabilities, or run it as root", who, Names(missing))
}

// Names returns the names of cs, with commas.
func Names(cs []Capability) string {
	names := make([]string, len(cs))
	for i, c := range cs {
		names[i] = c.String()
	}
	return strings.Join(names, ", ")
}
