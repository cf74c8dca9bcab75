// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/bench/scenario"
)

// TestShippedScenarios runs each scenario in small, with its reports.
func TestShippedScenarios(t *testing.T) {
	files, err := filepath.Glob("../scenarios/*.yaml")
	if err != nil || len(files) < 26 {
		t.Fatalf("%d scenarios: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			sc, err := scenario.Read(file)
			if err != nil {
				t.Fatal(err)
			}
			if sc.NotSimulated != "" {
				if err := command([]string{"-scenario", file}, io.Discard); err == nil || !strings.Contains(err.Error(), sc.NotSimulated) {
					t.Errorf("the simulator says %v, want why it does not run it", err)
				}
				return
			}
			if want := strings.TrimSuffix(filepath.Base(file), ".yaml"); sc.Name != want {
				t.Errorf("name: %s, want %s", sc.Name, want)
			}
			shrink := max(1, float64(sc.Requests)/3000)
			dir := t.TempDir()
			var out bytes.Buffer
			err = command([]string{
				"-scenario", file, "-shrink", strconv.FormatFloat(shrink, 'g', -1, 64),
				"-json", filepath.Join(dir, "x.json"), "-svg", dir,
			}, &out)
			if err != nil && !errors.Is(err, errExpected) { // too small to be as expected
				t.Fatalf("%v\n%s", err, out.String())
			}
			for _, a := range sc.Algorithms {
				if !strings.Contains(out.String(), a.Label) {
					t.Errorf("no line of %s in\n%s", a.Label, out.String())
				}
			}
			if files, _ := os.ReadDir(dir); len(files) < 2 {
				t.Errorf("%d files written, want JSON and plots", len(files))
			}
		})
	}
}

// TestExpectationsCanFail: a wrong one is reported and ends the command with an
// error.
func TestExpectationsCanFail(t *testing.T) {
	text := "name: x\nrequests: 2000\nload: [0.5]\nbackends: [{count: 4}]\nalgorithms: [{name: random}, {name: round-robin}]\n" +
		"expect:\n- {algorithm: random, metric: maxShare, of: round-robin, atMost: %s}\n"
	for limit, want := range map[string]error{"0.5": errExpected, "2": nil} {
		file := filepath.Join(t.TempDir(), "x.yaml")
		if err := os.WriteFile(file, []byte(strings.Replace(text, "%s", limit, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := command([]string{"-scenario", file}, &out); !errors.Is(err, want) {
			t.Errorf("at most %s: error %v, want %v\n%s", limit, err, want, out.String())
		}
	}
}
