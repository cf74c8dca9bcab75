// SPDX-License-Identifier: Apache-2.0

package algo_test

import (
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/algo/picktest"
)

var update = flag.Bool("update", false, "rewrite the golden files and the pictures in docs/ALGORITHMS.md")

// weigh returns members of these weights. A weight of 1000000*r + w is one of w
// whose slow start is at r/100.
func weigh(weights ...int) []algo.Member {
	ms := make([]algo.Member, len(weights))
	for i, w := range weights {
		ms[i] = algo.Member{ID: uint64(i) + 1, Weight: uint16(w % 1000000), Ramp: uint16(w / 1000000 * 65535 / 100)}
	}
	return ms
}

// vectors returns what is in testdata, as it is computed now. The kernel's twin of
// Pick is checked against the same file.
func vectors(t *testing.T) []picktest.Vector {
	var vs []picktest.Vector
	for _, name := range algo.Names() {
		for _, ms := range [][]algo.Member{
			weigh(), weigh(0), weigh(1), weigh(100, 100), weigh(1, 2), weigh(5, 1, 1), weigh(0, 3, 1), weigh(65535, 1, 0),
			weigh(100, 50, 25, 0, 100), weigh(1, 2, 3, 4, 5, 6, 7), weigh(100, 100, 100, 100, 10),
			weigh(65521, 65519, 65497, 3), weigh(100, 50000100, 100), weigh(100, 10000100, 90000001, 30),
			weigh(20000007, 30000007), weigh(make([]int, 20)...), many(70), many(33),
		} {
			table, err := algo.Build(name, ms)
			if err != nil {
				t.Fatal(err)
			}
			v := picktest.Vector{Algorithm: name, Members: ms, Table: table}
			for i := range uint32(len(ms)) {
				v.Loads = append(v.Loads, algo.Load{Active: i * 7 % 5, Latency: i * 0x9e3779b1 >> (i % 32), Idle: i * 3000})
			}
			for i := range uint32(24) {
				v.Draws = append(v.Draws, picktest.Draw{
					Rand: [5]uint32{i * 0x9e3779b1, i * 0x85ebca77, i * 0xc2b2ae3d, i * 0x27d4eb2f, i * 0x165667b1},
					Seq:  i * (1 + i/12), Hash: i * 0x9e3779b1,
				})
			}
			const most = 1<<32 - 1
			v.Draws = append(v.Draws, picktest.Draw{Rand: [5]uint32{most, most, most, most, most}, Seq: most, Hash: most})
			for _, in := range v.Inputs() {
				v.Picks = append(v.Picks, algo.Pick(v.Table, in))
			}
			vs = append(vs, v)
		}
	}
	return vs
}

// many returns n members of which some have no weight and some are starting.
func many(n int) []algo.Member {
	ms := make([]algo.Member, n)
	for i := range ms {
		ms[i] = algo.Member{ID: uint64(i) * 0x9e3779b97f4a7c15, Weight: uint16(i % 11)}
		if i%4 == 0 && i < 20 {
			ms[i].Ramp = uint16(i * 3000)
		}
	}
	return ms
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
	want, err := picktest.ReadVectors(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d vectors, %s has %d", len(got), file, len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		if !reflect.DeepEqual(g.Picks, w.Picks) {
			t.Errorf("%s of %v: picks\n got %v\nwant %v", g.Algorithm, g.Members, g.Picks, w.Picks)
		}
		if !sameJSON(g, w) {
			t.Errorf("%s of %v: the table or its inputs have changed", g.Algorithm, g.Members)
		}
	}
}

// sameJSON compares a and b as they are written: nil and empty are the same there.
func sameJSON(a, b picktest.Vector) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}
