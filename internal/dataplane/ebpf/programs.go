// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/privilege"
)

// programs are all loaded programs, by name.
type programs map[string]*ebpf.Program

func (p programs) close() {
	for _, prog := range p {
		prog.Close()
	}
}

// layer3 are the programs for devices without an Ethernet header, which few nodes have.
var layer3 = []string{lbProgLbIngressL3, lbProgLbEgressL3}

// loadPrograms loads every program but those of layer3, to work on the given maps.
func loadPrograms(m *maps, local lb.LocalDetector) (programs, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise the limit of locked memory: %w", err)
	}
	constants, err := constantsOf(local)
	if err != nil {
		return nil, err
	}
	sock, err := loadSock()
	if err != nil {
		return nil, err
	}
	devices, err := loadLb()
	if err != nil {
		return nil, err
	}
	for _, name := range layer3 {
		delete(devices.Programs, name)
	}
	progs := programs{}
	for _, spec := range []*ebpf.CollectionSpec{sock, devices} {
		if err := progs.load(spec, m, constants); err != nil {
			progs.close()
			return nil, err
		}
	}
	return progs, nil
}

// loadLayer3 loads what loadPrograms leaves out: the verifier takes as long for each
// program as for its twin.
func loadLayer3(m *maps, local lb.LocalDetector) (programs, error) {
	constants, err := constantsOf(local)
	if err != nil {
		return nil, err
	}
	spec, err := loadLb()
	if err != nil {
		return nil, err
	}
	for name := range spec.Programs {
		if !slices.Contains(layer3, name) {
			delete(spec.Programs, name)
		}
	}
	progs := programs{}
	return progs, progs.load(spec, m, constants)
}

// constantsOf returns what programs know of this node, and of the thread's network
// namespace.
func constantsOf(local lb.LocalDetector) (map[string]any, error) {
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
	if m := local.Mode; m == lb.LocalBridgeInterface || m == lb.LocalInterfaceNamePrefix {
		constants[lbVarPodsByDevice] = uint32(1)
	}
	return constants, nil
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
	twins := keepTwins(spec.Programs)
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
		p[cmp.Or(twins[name], name)] = coll.DetachProgram(name)
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
		return fmt.Errorf("load programs (lbproxy needs %s): %w", privilege.Names(privileges), err)
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
