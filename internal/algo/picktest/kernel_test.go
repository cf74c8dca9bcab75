// SPDX-License-Identifier: Apache-2.0

//go:build root

package picktest

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/algo"
)

func newKernel(t testing.TB) *Kernel {
	t.Helper()
	k, err := NewKernel()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func TestKernelVectors(t *testing.T) {
	checkVectors(t, &newKernel(t).machine)
}

func TestKernelEqualsGo(t *testing.T) {
	k := newKernel(t)
	checkRandom(t, &k.machine, 500)
	checkFunctions(t, &k.machine, 1000)
}

// TestKernelMostMembers: the largest tables fit, and every index can be picked.
func TestKernelMostMembers(t *testing.T) {
	k := newKernel(t)
	v := randomVector(rand.New(rand.NewPCG(1, 1)))
	v.Members, v.Loads = make([]algo.Member, algo.MaxMembers), make([]algo.Load, algo.MaxMembers)
	for i := range v.Members {
		v.Members[i] = algo.Member{ID: uint64(i), Weight: uint16(1 + i%2)}
		v.Loads[i] = algo.Load{Active: uint32(algo.MaxMembers - i)}
	}
	v.Draws = v.Draws[:8]
	v.Draws = append(v.Draws, Draw{Rand: [5]uint32{1<<32 - 1, 1<<32 - 1, 1<<32 - 1}, Seq: 1<<32 - 1, Hash: 1<<32 - 1})
	for _, v.Algorithm = range algo.Names() {
		compare(t, &k.machine, v)
	}
}

// threadTime is the processor time in ns that this thread has used.
func threadTime(b *testing.B) int64 {
	b.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return ts.Nano()
}

// BenchmarkKernelPick measures picks in the kernel, MaxBatch of them in one run of
// the program; ns/pick is the processor time of one, whoever else uses the processor.
func BenchmarkKernelPick(b *testing.B) {
	for _, name := range algo.Names() {
		for _, n := range []int{1, 10, 100, 1000, 5000} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				k, rng := newKernel(b), rand.New(rand.NewPCG(1, 1))
				ms := make([]algo.Member, n)
				for i := range ms {
					ms[i] = algo.Member{ID: uint64(i), Weight: 100}
				}
				table, err := algo.Build(name, ms)
				if err != nil {
					b.Fatal(err)
				}
				if err := k.Load(table); err != nil {
					b.Fatal(err)
				}
				ins, out := make([]algo.Input, MaxBatch), make([]int, MaxBatch)
				for i := range ins {
					ins[i] = algo.Input{Seq: uint32(i), Hash: rng.Uint32()}
					for j := range ins[i].Rand {
						ins[i].Rand[j] = rng.Uint32()
					}
				}
				if err := k.PickAll(ins, out); err != nil {
					b.Fatal(err)
				}
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				begin := threadTime(b)
				for b.Loop() { // the calls are still there
					if err := k.run(MaxBatch, k.out[:4]); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(threadTime(b)-begin)/float64(b.N*MaxBatch), "ns/pick")
			})
		}
	}
}

// BenchmarkKernelOnePick is what the simulator pays for a pick and two changes of
// a load.
func BenchmarkKernelOnePick(b *testing.B) {
	k := newKernel(b)
	table, err := algo.Build("power-of-two", []algo.Member{{ID: 1, Weight: 1}, {ID: 2, Weight: 1}, {ID: 3, Weight: 1}})
	if err != nil {
		b.Fatal(err)
	}
	if err := k.Load(table); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		i, err := k.Pick(algo.Input{})
		if err != nil {
			b.Fatal(err)
		}
		for active := range uint32(2) {
			if err := k.SetLoad(i, algo.Load{Active: active}); err != nil {
				b.Fatal(err)
			}
		}
	}
}
