// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	const begin = `{"config": {"db_last_modified": "2026-01-01T00:00:00Z"}}`
	finding := func(module, function string) string {
		return `{"finding": {"osv": "GO-1", "fixed_version": "v2", "trace": [{"module": "` + module + `", "version": "v1", "package": "p", "function": "` + function + `"}]}}`
	}
	for _, tc := range []struct{ name, report, says, fails string }{
		{"nothing", begin, "", ""},
		{"a module", begin + finding("example.com/m", "F") + finding("example.com/m", "G"), "GO-1 example.com/m v1, fixed in v2", "1 vulnerabilities are in modules"},
		{"not called", begin + finding("example.com/m", ""), "", ""},
		{"Go", begin + finding(stdlib, "F"), "build with a newer Go", ""},
		{"no report", "", "", "reported nothing"},
		{"half a report", begin + `{"finding": {`, "", "unexpected EOF"},
	} {
		var out strings.Builder
		err := judge(strings.NewReader(tc.report), &out)
		if (err == nil) != (tc.fails == "") || err != nil && !strings.Contains(err.Error(), tc.fails) || !strings.Contains(out.String(), tc.says) {
			t.Errorf("%s: got error %v, want %q; got\n%s", tc.name, err, tc.fails, out.String())
		}
	}
}

func TestDatabase(t *testing.T) {
	osv, out := t.TempDir(), filepath.Join(t.TempDir(), "db")
	if err := build(osv, out, io.Discard); err == nil {
		t.Error("no vulnerability: no error")
	}
	for id, text := range map[string]string{
		"GO-1": `{"id": "GO-1", "modified": "2026-01-02T00:00:00Z", "affected": [{"package": {"name": "b"}, "ranges": [{"events": [{"introduced": "0"}, {"fixed": "1.2"}]}]}]}`,
		"GO-2": `{"id": "GO-2", "modified": "2026-01-01T00:00:00Z", "published": "2026-01-03T00:00:00Z", "aliases": ["CVE-1"], "affected": [{"package": {"name": "b"}, "ranges": [{"events": [{"fixed": "1.2"}, {"introduced": "1.3"}]}]}, {"package": {"name": "a"}}]}`,
	} {
		if err := os.WriteFile(filepath.Join(osv, id+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := build(osv, out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"index/db.json":      `{"modified":"2026-01-03T00:00:00Z"}`,
		"index/vulns.json":   `[{"id":"GO-1","modified":"2026-01-02T00:00:00Z"},{"id":"GO-2","modified":"2026-01-01T00:00:00Z","aliases":["CVE-1"]}]`,
		"index/modules.json": `[{"path":"a","vulns":[{"id":"GO-2","modified":"2026-01-01T00:00:00Z"}]},{"path":"b","vulns":[{"id":"GO-1","modified":"2026-01-02T00:00:00Z","fixed":"1.2"},{"id":"GO-2","modified":"2026-01-01T00:00:00Z"}]}]`,
	} {
		if got, err := os.ReadFile(filepath.Join(out, file)); err != nil || string(got) != want {
			t.Errorf("%s: %v, got\n%s\nwant\n%s", file, err, got, want)
		}
	}
}
