// SPDX-License-Identifier: Apache-2.0

package picktest

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
)

// Kernel makes picks in the kernel, by a program that is run and not attached.
// It needs CAP_BPF and CAP_PERFMON. It is not for concurrent use.
type Kernel struct {
	machine
	objs struct {
		Run   *ebpf.Program `ebpf:"run_calls"`
		State *ebpf.Map     `ebpf:".bss"`
	}
}

// NewKernel loads the program. Its table is empty.
func NewKernel() (*Kernel, error) {
	k := &Kernel{}
	if err := loadPickObjects(&k.objs, nil); err != nil {
		return nil, fmt.Errorf("load pick.bpf.c: %w", err)
	}
	mem, err := k.objs.State.Memory()
	if err != nil {
		k.Close()
		return nil, fmt.Errorf("map the state: %w", err)
	}
	k.mem = mem
	k.run = func(_ int, results []byte) error {
		ret, err := k.objs.Run.Run(&ebpf.RunOptions{})
		if err != nil || ret != 0 {
			return fmt.Errorf("run_calls returned %d: %w", ret, err)
		}
		_, err = mem.ReadAt(results, int64(unsafe.Offsetof(pickState{}.Result)))
		return err
	}
	return k, nil
}

// Close unloads the program.
func (k *Kernel) Close() error {
	return errors.Join(k.objs.Run.Close(), k.objs.State.Close())
}
