// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestBars: the picture in the documentation shows the figures that are kept beside it.
func TestBars(t *testing.T) {
	base := filepath.Join("..", "..", "docs", "img", "two-slow-of-16")
	text, err := os.ReadFile(base + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var c barChart
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	picture, err := os.ReadFile(base + ".svg")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Bars) < 5 || !bytes.Equal(picture, c.draw()) {
		t.Errorf("docs/img/two-slow-of-16.svg is not what its figures look like: go run ./bench/sim -scenario bench/scenarios/two-slow-of-16.yaml -bars docs/img/two-slow-of-16")
	}
}
