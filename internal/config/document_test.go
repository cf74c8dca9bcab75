// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestKinds(t *testing.T) {
	for file, want := range map[string]string{
		"apiVersion: lbproxy.io/v1alpha1\nkind: ProxyConfiguration\nnodeName: worker": "",
		"nodeName: worker": "",
		"apiVersion: lbproxy.io/v2\nkind: ProxyConfiguration": "c.yaml): is a ProxyConfiguration of lbproxy.io/v2: want ProxyConfiguration of lbproxy.io/v1alpha1",
		"kind: ProxyConfiguration":                            "is a ProxyConfiguration of nothing: want",
		"apiVersion: lbproxy.io/v1alpha1":                     "is a nothing of lbproxy.io/v1alpha1: want",
		"apiVersion: v1\nkind: ConfigMap":                     "kind (from ",
	} {
		_, c, err := load(t, file, nil, nil)
		if want == "" && (err != nil || c.NodeName != "worker") {
			t.Errorf("%q: %q, %v", file, c.NodeName, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: error %v, want %q in it", file, err, want)
		}
	}
}

// TestFile: what File writes is read as the same configuration, and says only what is no
// default.
func TestFile(t *testing.T) {
	for _, file := range []string{everything, fullKubeProxyFile, "clusterCIDR: 10.0.0.0/8"} {
		l, want, err := load(t, file, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		if _, got, err := load(t, string(text), nil, nil); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("read from\n%s\n%v\ngot  %+v\nwant %+v", text, err, got, want)
		}
		if file == "clusterCIDR: 10.0.0.0/8" && string(text) != "apiVersion: lbproxy.io/v1alpha1\nclusterCIDR:\n- 10.0.0.0/8\nkind: ProxyConfiguration\n" {
			t.Errorf("got\n%s", text)
		}
	}
}

// TestSchema: it has every field of a file that has all, with a type that fits, and no
// other.
func TestSchema(t *testing.T) {
	text, err := Schema(New("random", "round-robin").Table())
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Additional bool `json:"additionalProperties"`
		Properties map[string]struct {
			Description string
			Type        any
			Enum        []string
		}
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := yaml.Unmarshal([]byte(everything+"manifests: /m\npodInterfaceNamePrefix: veth\nkind: ProxyConfiguration\napiVersion: v"), &fields); err != nil {
		t.Fatal(err)
	}
	for name, v := range fields {
		p := schema.Properties[name]
		if types := allTypes(p.Type); p.Description == "" || !types[typeOf(v)] {
			t.Errorf("%s: %v is %s, the schema has %+v", name, v, typeOf(v), p)
		}
	}
	for name := range schema.Properties {
		if _, ok := fields[name]; !ok && name != "enableProfiling" && name != "hostnameOverride" && name != "proxyMode" {
			t.Errorf("%s is in the schema and in no file", name)
		}
	}
	if schema.Additional {
		t.Error("other fields are allowed")
	}
	if got := schema.Properties["algorithm"].Enum; !reflect.DeepEqual(got, []string{"random", "round-robin"}) {
		t.Errorf("algorithms are %q", got)
	}
}

func allTypes(v any) map[string]bool {
	all := map[string]bool{}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	for _, name := range list {
		all[name.(string)] = true
	}
	return all
}

func typeOf(v any) string {
	switch v.(type) {
	case bool:
		return "boolean"
	case float64:
		return "integer"
	case []any:
		return "array"
	}
	return "string"
}

// TestEveryFieldIsDocumented: with a section, what it does and, where it can be said, the
// default; and an error says which value is wrong and what is allowed.
func TestEveryFieldIsDocumented(t *testing.T) {
	l := New("random", "round-robin")
	table := Markdown(l.Table())
	for _, f := range l.Table() {
		row := "| `" + f.Name + "` | `--" + f.Flag + "` | `" + f.Variable + "` |"
		if f.Flag == configFlag {
			row = "|  | `--config` | `LBPROXY_CONFIG` |"
		}
		if !strings.Contains(table, row) || f.Usage == "" || f.Section == "" {
			t.Errorf("%s is not documented: %+v", f.Flag, f)
		}
		if f.Type == "path" || f.Type == "name" && f.Values == nil || f.Type == "text" || f.Type == "prefix" || f.Flag == "manifests" {
			continue // of any text
		}
		value := "/\x01 bad " + f.Flag
		err := l.flags.Lookup(f.Flag).Value.Set(value)
		if err == nil || !strings.Contains(err.Error(), "want ") && !strings.Contains(err.Error(), "is no") || !strings.Contains(err.Error(), "bad") {
			if f.Type != "dir" { // which is any absolute path
				t.Errorf("--%s=%q: error %v, want the value and what is allowed", f.Flag, value, err)
			}
		}
	}
}

// TestDocumentIsCurrent: what is committed is generated from this table.
func TestDocumentIsCurrent(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "CONFIGURATION.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{MarkdownOfKubeProxyFields(), MarkdownOfKubeProxyFlags()} {
		if !strings.Contains(string(text), part) {
			t.Error("docs/CONFIGURATION.md is stale: run make generate")
		}
	}
}
