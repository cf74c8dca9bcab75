// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Markdown returns the table of fields for the documentation, by section.
func Markdown(fields []Field) string {
	var b strings.Builder
	section := ""
	for _, f := range fields {
		if f.Section != section {
			section = f.Section
			fmt.Fprintf(&b, "\n### %s\n\n| field | flag | variable | value | default | reload | |\n|---|---|---|---|---|---|---|\n", section)
		}
		field, env, reload := code(f.Name), code(f.Variable), "restart"
		if f.Flag == configFlag {
			field, reload = "", "is watched"
		}
		if f.Live {
			reload = "yes"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n",
			field, code("--"+f.Flag), env, f.kindOfValue(), code(f.text()), reload, strings.ReplaceAll(f.Usage, "|", `\|`))
	}
	return strings.TrimPrefix(b.String(), "\n")
}

func (f Field) kindOfValue() string {
	if len(f.Values) == 0 {
		return f.Type
	}
	quoted := make([]string, len(f.Values))
	for i, v := range f.Values {
		quoted[i] = code(v)
	}
	return strings.Join(quoted, ", ")
}

// text returns the default as one would write it.
func (f Field) text() string {
	if list, ok := f.Default.([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(f.Default)
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// property is a field in a JSON schema.
type property struct {
	Description string    `json:"description"`
	Type        any       `json:"type,omitempty"` // a name, or some
	Items       *property `json:"items,omitempty"`
	Enum        []string  `json:"enum,omitempty"`
	Const       string    `json:"const,omitempty"`
	Pattern     string    `json:"pattern,omitempty"`
	Default     any       `json:"default,omitempty"`
}

// durations are what time.ParseDuration takes, without a sign.
const durations = `^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$|^0$`

// Schema returns the JSON schema of the file. What a schema cannot say, such as which
// fields exclude each other, the program says.
func Schema(fields []Field) ([]byte, error) {
	properties := map[string]property{
		fieldVersion: {Description: "The version of this file", Const: Version, Type: "string"},
		fieldKind:    {Description: "What this file is", Const: Kind, Type: "string"},
	}
	byFlag := map[string]property{}
	for _, f := range fields {
		byFlag[f.Flag] = f.property()
		if f.Flag != configFlag {
			properties[f.Name] = f.property()
		}
	}
	for _, alias := range slices.Sorted(maps.Keys(aliases)) {
		p := byFlag[aliases[alias]]
		p.Description, p.Default = "Another name of "+fieldName(aliases[alias]), nil
		if aliases[alias] == "dataplane" {
			p.Enum = nil // kube-proxy's modes, too
		}
		properties[fieldName(alias)] = p
	}
	out, err := json.MarshalIndent(map[string]any{
		"$schema":              "http://json-schema.org/draft-07/schema#",
		"title":                Kind + " " + Version,
		"type":                 "object",
		"additionalProperties": false,
		"properties":           properties,
	}, "", "  ")
	return append(out, '\n'), err
}

// property returns what the file may have as the value of f.
func (f Field) property() property {
	p := property{Description: f.Usage, Enum: f.Values, Type: "string"}
	if f.text() != "" {
		p.Default = f.Default
	}
	switch f.Type {
	case "bool":
		p.Type = "boolean"
	case "n", "percent", "codes":
		p.Type = []string{"integer", "string"}
	case "duration":
		p.Pattern = durations
	case "list":
		p.Type, p.Items = []string{"array", "string"}, &property{Description: "one of them", Type: "string"}
	}
	return p
}
