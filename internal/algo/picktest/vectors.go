// SPDX-License-Identifier: Apache-2.0

package picktest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lbproxy/lbproxy/internal/algo"
)

// Vector is one golden case: members, the table that an algorithm makes of them,
// loads, and what is picked for some inputs.
type Vector struct {
	Algorithm string
	Members   []algo.Member
	Table     algo.Table
	Loads     []algo.Load
	Draws     []Draw
	Picks     []int
}

// Draw is an algo.Input without its loads.
type Draw struct {
	Rand [5]uint32
	Seq  uint32
	Hash uint32
}

// Inputs returns the draws as inputs with the vector's loads.
func (v Vector) Inputs() []algo.Input {
	ins := make([]algo.Input, len(v.Draws))
	for i, d := range v.Draws {
		ins[i] = algo.Input{Rand: d.Rand, Seq: d.Seq, Hash: d.Hash, Load: v.load}
	}
	return ins
}

func (v Vector) load(member int) algo.Load { return v.Loads[member] }

// ReadVectors reads a file of vectors, one JSON object after the other.
func ReadVectors(file string) ([]Vector, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("vectors: %w", err)
	}
	defer f.Close()
	var vs []Vector
	for dec := json.NewDecoder(f); ; {
		var v Vector
		switch err := dec.Decode(&v); {
		case errors.Is(err, io.EOF):
			return vs, nil
		case err != nil:
			return nil, fmt.Errorf("vectors: %s: %w", file, err)
		}
		vs = append(vs, v)
	}
}
