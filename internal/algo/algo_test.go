// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"reflect"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

func members(weights ...uint16) []Member {
	ms := make([]Member, len(weights))
	for i, w := range weights {
		ms[i] = Member{ID: uint64(i) + 1, Weight: w}
	}
	return ms
}

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
			if got := Pick(table, Input{}); got != -1 {
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
		for _, heavy := range []uint16{1, 2, 65535} {
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
			ins = append(ins, Input{Rand: [2]uint32{a, b}, Seq: a ^ b}, Input{Rand: [2]uint32{b, a}, Seq: a})
		}
	}
	return ins
}

// vector is one golden case: a table and what it picks. The kernel's twin of
// Pick is checked against the same files.
type vector struct {
	Algorithm string
	Weights   []uint16
	Table     Table
	Inputs    []Input
	Picks     []int
}

func vectors(t *testing.T) []vector {
	var vs []vector
	for _, name := range Names() {
		for _, weights := range [][]uint16{
			{}, {0}, {1}, {100, 100}, {1, 2}, {5, 1, 1}, {0, 3, 1}, {65535, 1, 0},
			{100, 50, 25, 0, 100}, {1, 2, 3, 4, 5, 6, 7}, {100, 100, 100, 100, 10},
		} {
			v := vector{Algorithm: name, Weights: weights, Table: mustBuild(t, name, members(weights...))}
			for i := range uint32(24) {
				v.Inputs = append(v.Inputs, Input{Rand: [2]uint32{i * 0x9e3779b1, i * 0x85ebca77}, Seq: i * (1 + i/12)})
			}
			v.Inputs = append(v.Inputs, Input{Rand: [2]uint32{1<<32 - 1, 1<<32 - 1}, Seq: 1<<32 - 1})
			for _, in := range v.Inputs {
				v.Picks = append(v.Picks, Pick(v.Table, in))
			}
			vs = append(vs, v)
		}
	}
	return vs
}

func TestGoldenVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	got := vectors(t)
	if *update {
		var out []byte
		for _, v := range got { // one line each: a readable diff
			line, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			out = append(append(out, line...), '\n')
		}
		if err := os.WriteFile(file, out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	var want []vector
	for dec.More() {
		var v vector
		if err := dec.Decode(&v); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		want = append(want, v)
	}
	if len(got) != len(want) {
		t.Fatalf("%d vectors, %s has %d", len(got), file, len(want))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("%s of %v:\n got %+v\nwant %+v", got[i].Algorithm, got[i].Weights, got[i], want[i])
		}
	}
}

func FuzzPick(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint32(0), uint32(0), uint32(0))
	f.Add([]byte{0, 255, 0, 1}, uint32(1<<31), uint32(1<<16), uint32(7))
	f.Add([]byte{0, 0}, uint32(1<<32-1), uint32(1<<32-1), uint32(1<<32-1))
	f.Fuzz(func(t *testing.T, raw []byte, r0, r1, seq uint32) {
		ms := make([]Member, len(raw))
		for i, b := range raw {
			ms[i] = Member{ID: uint64(i), Weight: uint16(b) * uint16(b)} // 0..65025, coarse
		}
		alive := slices.ContainsFunc(ms, func(m Member) bool { return m.Weight > 0 })
		for _, name := range Names() {
			table := mustBuild(t, name, ms)
			got := Pick(table, Input{Rand: [2]uint32{r0, r1}, Seq: seq})
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
