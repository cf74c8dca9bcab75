// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// programs are all loaded programs, by name.
type programs map[string]*ebpf.Program

func (p programs) close() {
	for _, prog := range p {
		prog.Close()
	}
}

// loadPrograms loads every program, to work on the given maps.
func loadPrograms(m *maps) (programs, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise the limit of locked memory: %w", err)
	}
	cookie, err := netnsCookie()
	if err != nil {
		return nil, fmt.Errorf("network namespace cookie: %w", err)
	}
	lo, hi := snatPorts("/proc/sys/net/ipv4/ip_local_port_range")
	constants := map[string]any{
		lbVarHostNetns:   cookie,
		lbVarSnatPortMin: lo,
		lbVarSnatPortMax: hi,
	}
	progs := programs{}
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadSock, loadLb} {
		spec, err := load()
		if err == nil {
			err = progs.load(spec, m, constants)
		}
		if err != nil {
			progs.close()
			return nil, err
		}
	}
	return progs, nil
}

// load adds the programs of one object.
func (p programs) load(spec *ebpf.CollectionSpec, m *maps, constants map[string]any) error {
	for name, value := range constants {
		if v := spec.Variables[name]; v != nil {
			if err := v.Set(value); err != nil {
				return fmt.Errorf("constant %s: %w", name, err)
			}
		}
	}
	shared := map[string]*ebpf.Map{}
	for name, ms := range spec.Maps {
		if bm := m.byName[name]; bm != nil {
			ms.MaxEntries = bm.MaxEntries()
			shared[name] = bm
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return explainLoad(err)
	}
	defer coll.Close()
	for name := range coll.Programs {
		p[name] = coll.DetachProgram(name)
	}
	return nil
}

// explainLoad turns the kernel's refusal of a program into a sentence for the
// node's operator.
func explainLoad(err error) error {
	var ve *ebpf.VerifierError
	switch {
	case errors.As(err, &ve):
		return fmt.Errorf("the kernel refuses a program (lbproxy needs Linux 6.1): %w", ve)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("load programs (lbproxy needs CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN): %w", err)
	}
	return fmt.Errorf("load programs: %w", err)
}

// netnsCookie returns the kernel's number of this thread's network namespace.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// snatPorts returns the range of source ports for masquerading: the larger of
// the parts below and above the range that the node's own sockets use, without the
// NodePorts that a cluster has by default.
func snatPorts(sysctl string) (lo, hi uint16) {
	const lowest, highest = 1024, 65535
	const firstNodePort = 30000                 // where a cluster does not say otherwise; one may come later
	first, last := uint16(32768), uint16(60999) // the kernel's default
	if b, err := os.ReadFile(sysctl); err == nil {
		_, _ = fmt.Sscan(strings.TrimSpace(string(b)), &first, &last) // keeps what it cannot read
	}
	below, above := int(first)-lowest, highest-int(last)
	switch {
	case below < 1024 && above < 1024: // local sockets use nearly all: share with them
		return lowest, highest
	case below >= above:
		return lowest, min(first, firstNodePort) - 1
	}
	return last + 1, highest
}

// runSyscall runs a program of type syscall on in and returns what it made of it.
func runSyscall[T any](p *ebpf.Program, in *T) (T, error) {
	var out T
	ret, err := p.Run(&ebpf.RunOptions{Context: in, ContextOut: &out})
	if err == nil && ret != 0 {
		err = fmt.Errorf("program returned %d", ret)
	}
	return out, err
}
