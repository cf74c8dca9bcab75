// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

const (
	stackMax   = 512 // bytes that a program and what it calls may use at once
	stackFrame = 32  // bytes: Linux 6.1 rounds each frame up to them, later ones to 16
)

// function is what one of a program's functions needs.
type function struct {
	stack int // bytes
	calls map[string]bool
}

// functionsOf returns the functions of a program by name, and the name of the first.
func functionsOf(p *ebpf.ProgramSpec) (funcs map[string]*function, first string) {
	funcs = map[string]*function{}
	var f *function
	for _, ins := range p.Instructions {
		if sym := ins.Symbol(); sym != "" {
			f = &function{calls: map[string]bool{}}
			funcs[sym] = f
			if first == "" {
				first = sym
			}
		}
		if ins.IsFunctionCall() || ins.IsFunctionReference() {
			f.calls[ins.Reference()] = true
		}
		f.stack = max(f.stack, depthOf(ins))
	}
	return funcs, first
}

// depthOf returns how many bytes below the frame pointer an instruction reaches. Clang
// makes a pointer into the frame by a copy of R10 and an addition of a negative number.
func depthOf(ins asm.Instruction) int {
	class := ins.OpCode.Class()
	switch {
	case class == asm.LdXClass && ins.Src == asm.R10, class.IsStore() && ins.Dst == asm.R10:
		return -int(ins.Offset)
	case class == asm.ALU64Class && ins.OpCode.ALUOp() == asm.Add && ins.OpCode.Source() == asm.ImmSource && ins.Constant >= -stackMax:
		return -int(ins.Constant)
	}
	return 0
}

// deepest returns the most bytes that a function and what it calls use, and by what way.
func deepest(funcs map[string]*function, name string) (bytes int, way []string) {
	f := funcs[name]
	if f == nil {
		return 0, nil
	}
	for callee := range f.calls {
		if b, w := deepest(funcs, callee); b > bytes {
			bytes, way = b, w
		}
	}
	own := (max(f.stack, 1) + stackFrame - 1) / stackFrame * stackFrame
	return bytes + own, append([]string{fmt.Sprintf("%s %d", name, own)}, way...)
}

// TestStackFitsOldestKernel: a kernel that rounds frames less accepts programs that
// Linux 6.1 refuses.
func TestStackFitsOldestKernel(t *testing.T) {
	for object, load := range map[string]func() (*ebpf.CollectionSpec, error){"lb": loadLb, "sock": loadSock, "stale": loadStale} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for name, p := range spec.Programs {
			funcs, first := functionsOf(p)
			bytes, way := deepest(funcs, first)
			if bytes < stackFrame {
				t.Errorf("%s: %s uses %d bytes: nothing was found", object, name, bytes)
			}
			if bytes > stackMax {
				t.Errorf("%s: %s may use %d bytes of stack, at most %d fit: %s", object, name, bytes, stackMax, strings.Join(way, " > "))
			}
			t.Logf("%s: %s %d: %s", object, name, bytes, strings.Join(way, " > "))
		}
	}
}
