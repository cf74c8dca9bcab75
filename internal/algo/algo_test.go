// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"errors"
	"reflect"
	"slices"
	"testing"
)

func members(weights ...uint16) []Member {
	ms := make([]Member, len(weights))
	for i, w := range weights {
		ms[i] = Member{ID: uint64(i) + 1, Weight: w}
	}
	return ms
}

// idle is the load of members without connections.
func idle(int) Load { return Load{} }

func mustBuild(t testing.TB, name string, ms []Member) Table {
	t.Helper()
	table, err := Build(name, ms)
	if err != nil {
		t.Fatalf("Build(%q, %d members): %v", name, len(ms), err)
	}
	return table
}

func TestBuildErrors(t *testing.T) {
	_, err := Build("no-such", members(1))
	if !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown name: error %v, want ErrUnknown", err)
	}
	if err := Check("no-such"); !errors.Is(err, ErrUnknown) {
		t.Errorf("Check of an unknown name: error %v, want ErrUnknown", err)
	}
	for _, name := range Names() {
		if err := Check(name); err != nil {
			t.Errorf("Check(%q): %v", name, err)
		}
		if _, err := Build(name, members(make([]uint16, MaxMembers+1)...)); !errors.Is(err, ErrTooMany) {
			t.Errorf("%s with %d members: error %v, want ErrTooMany", name, MaxMembers+1, err)
		}
	}
}

func TestNobodyToPick(t *testing.T) {
	for _, name := range Names() {
		for _, ms := range [][]Member{nil, members(0), members(0, 0, 0)} {
			table := mustBuild(t, name, ms)
			if !reflect.DeepEqual(table, Table{}) {
				t.Errorf("%s of %v: %+v, want the empty table", name, ms, table)
			}
			if got := Pick(table, Input{Load: idle}); got != -1 {
				t.Errorf("%s of %v: pick %d, want -1", name, ms, got)
			}
		}
	}
}

func TestOneMemberIsAlwaysPicked(t *testing.T) {
	for _, name := range Names() {
		table := mustBuild(t, name, members(3))
		for _, in := range corners() {
			if got := Pick(table, in); got != 0 {
				t.Errorf("%s: pick %d for %+v, want 0", name, got, in)
			}
		}
	}
}

func TestMostMembers(t *testing.T) {
	for _, name := range Names() {
		for _, heavy := range []uint16{1, 65535} {
			ms := members(make([]uint16, MaxMembers)...)
			for i := range ms {
				ms[i].Weight = 1
			}
			ms[MaxMembers-1].Weight = heavy
			table := mustBuild(t, name, ms)
			if table.N != MaxMembers {
				t.Errorf("%s: N is %d, want %d", name, table.N, MaxMembers)
			}
			for _, in := range corners() {
				if got := Pick(table, in); got < 0 || got >= MaxMembers {
					t.Errorf("%s: pick %d for %+v is out of range", name, got, in)
				}
			}
		}
	}
}

func TestSequenceTakesTurns(t *testing.T) {
	table := mustBuild(t, "round-robin", members(1, 1, 1))
	for seq := range uint32(9) {
		if got, want := Pick(table, Input{Seq: seq}), int(seq%3); got != want {
			t.Errorf("pick %d is %d, want %d", seq, got, want)
		}
	}
}

// corners returns inputs at the edges of every range.
func corners() []Input {
	var ins []Input
	edges := []uint32{0, 1, 1 << 15, 1 << 16, 1<<31 - 1, 1 << 31, 1<<32 - 2, 1<<32 - 1}
	for _, a := range edges {
		for _, b := range edges {
			ins = append(ins, Input{Rand: [5]uint32{a, b, b, a, a}, Seq: a ^ b, Hash: a, Load: idle},
				Input{Rand: [5]uint32{b, a, a, b, b}, Seq: a, Hash: b, Load: idle})
		}
	}
	return ins
}

func FuzzPick(f *testing.F) {
	f.Add([]byte{1, 2, 3}, []byte{}, uint32(0), uint32(0), uint32(0))
	f.Add([]byte{0, 255, 0, 1}, []byte{0, 9}, uint32(1<<31), uint32(1<<16), uint32(7))
	f.Add([]byte{0, 0}, []byte{1}, uint32(1<<32-1), uint32(1<<32-1), uint32(1<<32-1))
	f.Fuzz(func(t *testing.T, raw, ramps []byte, r0, r1, seq uint32) {
		ms := make([]Member, min(len(raw), 400))
		for i := range ms {
			ms[i] = Member{ID: uint64(i), Weight: uint16(raw[i]) * uint16(raw[i])} // 0..65025, coarse
			if i < len(ramps) {
				ms[i].Ramp = uint16(ramps[i]) << 8
			}
		}
		alive := slices.ContainsFunc(ms, func(m Member) bool { return m.Weight > 0 })
		in := Input{Rand: [5]uint32{r0, r1, r1, r0, r0 ^ r1}, Seq: seq, Hash: r0, Load: func(i int) Load {
			return Load{Active: r1 >> (i % 32), Latency: r0 >> (i % 32), Idle: seq}
		}}
		for _, name := range Names() {
			table := mustBuild(t, name, ms)
			got := Pick(table, in)
			switch {
			case !alive && got != -1:
				t.Errorf("%s of %v: pick %d, want -1", name, raw, got)
			case alive && (got < 0 || got >= len(ms)):
				t.Errorf("%s of %v: pick %d is out of range", name, raw, got)
			case alive && ms[got].Weight == 0:
				t.Errorf("%s of %v: pick %d has weight 0", name, raw, got)
			}
		}
	})
}

// TestByID gives members other ids: only algorithms that say so make another table.
func TestByID(t *testing.T) {
	for _, name := range Names() {
		var tables [2]Table
		for k := range tables {
			ms := make([]Member, 20)
			for i := range ms {
				ms[i] = Member{ID: uint64(i*k) * 0x9e3779b97f4a7c15, Weight: uint16(1 + i%3)}
			}
			var err error
			if tables[k], err = Build(name, ms); err != nil {
				t.Fatal(err)
			}
		}
		if same := reflect.DeepEqual(tables[0], tables[1]); same == ByID(name) {
			t.Errorf("%s: the same table with other ids: %t, and ByID says %t", name, same, ByID(name))
		}
	}
}
