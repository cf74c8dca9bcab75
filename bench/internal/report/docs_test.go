// SPDX-License-Identifier: Apache-2.0

package report

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lbproxy/lbproxy/bench/result"
)

// TestDocsSayWhatWasMeasured: the tables of the documentation are those that the tool makes
// of the results that are kept.
func TestDocsSayWhatWasMeasured(t *testing.T) {
	const root = "../../../"
	names, err := filepath.Glob(root + "bench/results/*.json")
	if err != nil || len(names) == 0 {
		t.Fatalf("%d results are kept: %v", len(names), err)
	}
	var files []*result.File
	for _, name := range names {
		f, err := result.Read(name)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	for _, name := range []string{"README.md", "docs/BENCHMARKS.md"} {
		text, err := os.ReadFile(root + name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := fill(string(text), files)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want != string(text) {
			t.Errorf("%s is not what bench/results say: see how docs/BENCHMARKS.md says to put new figures there", name)
		}
	}
}
