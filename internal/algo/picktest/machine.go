// SPDX-License-Identifier: Apache-2.0

// Package picktest runs bpf/lib/pick.h, the kernel's twin of algo.Pick: in the
// kernel (Kernel) and, in its tests, on the host. It is for tests and for the
// simulator; the product does not contain it.
package picktest

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/lbproxy/lbproxy/internal/algo"
)

// MaxBatch is how many calls one run makes.
const MaxBatch = len(pickState{}.Call)

// memory is the state of walk.bpf.h, wherever that runs.
type memory interface {
	WriteAt(p []byte, offset int64) (int, error)
}

// machine makes picks with walk.bpf.h.
type machine struct {
	mem  memory
	run  func(calls int, results []byte) error // makes the calls; results has 4 bytes for each
	head [7]uint32                             // of the table: the fields of struct control from kind on
	buf  []byte
	out  []byte
}

// Load makes t the table of all later picks.
func (m *machine) Load(t algo.Table) error {
	if len(t.Order) > len(pickState{}.Order) {
		return fmt.Errorf("order of %d entries, want at most %d", len(t.Order), len(pickState{}.Order))
	}
	m.head = [7]uint32{
		uint32(t.Kind), uint32(t.Cost), t.N,
		uint32(len(t.Alias)), uint32(len(t.Order)), uint32(len(t.Factors)), uint32(len(t.Starters)),
	}
	m.buf = m.buf[:0]
	for _, i := range t.Order {
		m.buf = binary.LittleEndian.AppendUint16(m.buf, i)
	}
	if err := m.write(unsafe.Offsetof(pickState{}.Order)); err != nil {
		return err
	}
	for _, part := range []struct {
		offset uintptr
		words  []uint32
	}{
		{unsafe.Offsetof(pickState{}.Alias), t.Alias},
		{unsafe.Offsetof(pickState{}.Factor), t.Factors},
		{unsafe.Offsetof(pickState{}.Starter), t.Starters},
	} {
		m.words(part.words...)
		if err := m.write(part.offset); err != nil {
			return err
		}
	}
	return nil
}

// SetLoad sets what is known of a member in later picks.
func (m *machine) SetLoad(member int, l algo.Load) error {
	m.words(l.Active, l.Latency, l.Idle)
	return m.write(unsafe.Offsetof(pickState{}.Load) + uintptr(member)*unsafe.Sizeof(pickState{}.Load[0]))
}

// SetLoads sets what is known of the first len(loads) members.
func (m *machine) SetLoads(loads []algo.Load) error {
	m.buf = m.buf[:0]
	for _, l := range loads {
		m.appendWords(l.Active, l.Latency, l.Idle)
	}
	return m.write(unsafe.Offsetof(pickState{}.Load))
}

// Pick returns what algo.Pick returns for the table and the loads that were set;
// in.Load is not used.
func (m *machine) Pick(in algo.Input) (int, error) {
	ins, out := [1]algo.Input{in}, [1]int{}
	err := m.PickAll(ins[:], out[:])
	return out[0], err
}

// PickAll makes many picks with the same loads: out[i] is the pick for ins[i].
func (m *machine) PickAll(ins []algo.Input, out []int) error {
	for len(ins) > 0 {
		n := min(len(ins), MaxBatch)
		m.buf = m.buf[:0]
		for _, in := range ins[:n] {
			m.appendWords(in.Rand[:]...)
			m.appendWords(in.Seq, in.Hash, 0, 0, 0, 0, 0)
		}
		if err := m.call(pickOpOP_PICK, 0, n); err != nil {
			return err
		}
		for i := range n {
			out[i] = int(int32(m.result(i)))
		}
		ins, out = ins[n:], out[n:]
	}
	return nil
}

// call makes the n calls that are in buf.
func (m *machine) call(op pickOp, seed uint64, n int) error {
	if err := m.write(unsafe.Offsetof(pickState{}.Call)); err != nil {
		return err
	}
	m.buf = binary.LittleEndian.AppendUint64(m.buf[:0], seed)
	m.appendWords(uint32(op), uint32(n))
	m.appendWords(m.head[:]...)
	if err := m.write(unsafe.Offsetof(pickState{}.Control)); err != nil {
		return err
	}
	if len(m.out) < 4*n {
		m.out = make([]byte, 4*n)
	}
	return m.run(n, m.out[:4*n])
}

func (m *machine) result(i int) uint32 {
	return binary.LittleEndian.Uint32(m.out[4*i:])
}

// words makes buf these words.
func (m *machine) words(words ...uint32) {
	m.buf = m.buf[:0]
	m.appendWords(words...)
}

func (m *machine) appendWords(words ...uint32) {
	for _, w := range words {
		m.buf = binary.LittleEndian.AppendUint32(m.buf, w)
	}
}

// write writes buf to an offset of the state.
func (m *machine) write(offset uintptr) error {
	if len(m.buf) == 0 {
		return nil
	}
	if _, err := m.mem.WriteAt(m.buf, int64(offset)); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(m.buf), offset, err)
	}
	return nil
}
