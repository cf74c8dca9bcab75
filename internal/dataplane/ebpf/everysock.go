// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// byFile ends the names of the programs that look at sockets by the open files of
// processes. Each has a twin without it, which sees more: see bpf/lib/everysock.h.
const byFile = "_file"

// socketsByFile tells whether the kernel refuses programs that walk the elements of a
// map, as one in lockdown may. Tests replace it.
var socketsByFile = sync.OnceValue(func() bool {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.Tracing,
		AttachType:   ebpf.AttachTraceIter,
		AttachTo:     "bpf_sk_storage_map",
		License:      "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return errors.Is(err, unix.EPERM) // whatever else is wrong is told when programs are loaded
	}
	prog.Close()
	return false
})

// keepTwins drops one of each pair of programs, and returns the twins by the names of those
// that they stand for.
func keepTwins(specs map[string]*ebpf.ProgramSpec) (twins map[string]string) {
	twins = map[string]string{}
	for name := range specs {
		first, is := strings.CutSuffix(name, byFile)
		switch {
		case !is:
		case socketsByFile():
			delete(specs, first)
			twins[name] = first
		default:
			delete(specs, name)
		}
	}
	return twins
}

// overSockets runs a program for every socket with an assignment, as its output is read.
func (p programs) overSockets(name string, m *maps) (io.ReadCloser, error) {
	opts := link.IterOptions{Program: p[name]}
	if !socketsByFile() {
		opts.Map = m.byName[lbMapSockStates]
	}
	return iterator(opts)
}

// iterator starts an iterator; it lives as long as what is returned.
func iterator(opts link.IterOptions) (io.ReadCloser, error) {
	it, err := link.AttachIter(opts)
	if err != nil {
		return nil, err
	}
	defer it.Close() // what is opened holds it
	r, err := it.Open()
	if err != nil {
		return nil, err
	}
	return unhurried{r}, nil
}

// unhurried reads on where the kernel made a pause: it does after a million objects of which a
// program wrote nothing, and goes on with the next.
type unhurried struct{ io.ReadCloser }

// Read reads what comes next.
func (p unhurried) Read(b []byte) (int, error) {
	for {
		if n, err := p.ReadCloser.Read(b); !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
	}
}
