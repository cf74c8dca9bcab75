// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"strings"

	"github.com/spf13/pflag"
)

// Field is one thing that can be configured, for people, shells and the schema.
type Field struct {
	Flag     string   // without the dashes
	Name     string   // in the file
	Variable string   // of the environment; empty: none
	Type     string   // as the help text calls it
	Usage    string   // what it does
	Section  string   // of the documentation
	Values   []string // all that are allowed; nil: they cannot be listed
	Default  any      // as JSON has it
	Live     bool     // a reload applies it; else it needs a restart
}

// about is what else is known of a field.
type about struct {
	typ     string
	section string
	values  []string
	isLive  bool
}

// of says which values there are.
func (a *about) of(values ...string) *about {
	a.values = values
	return a
}

// live says that a reload applies the field.
func (a *about) live() *about {
	a.isLive = true
	return a
}

// value is a field as pflag wants it.
type value[T any] struct {
	about
	field  *T
	parse  func(string) (T, error)
	format func(T) string
}

// described is implemented by every value.
type described interface {
	pflag.Value
	plain() any // what JSON shows
	known() about
}

// String returns the field as text that Set would read.
func (v *value[T]) String() string {
	if v.field == nil { // pflag asks a zero value what its default is
		return ""
	}
	return v.format(*v.field)
}

// Set changes the field, but not to something that cannot be parsed.
func (v *value[T]) Set(s string) error {
	parsed, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.field = parsed
	return nil
}

// Type returns what the help text calls the value.
func (v *value[T]) Type() string { return v.typ }

func (v *value[T]) known() about { return v.about }

func (v *value[T]) plain() any {
	switch field := any(*v.field).(type) {
	case bool, uint32, uint8, int:
		return field
	}
	switch s := v.format(*v.field); {
	case v.typ == "bool":
		return s == "true"
	case (v.typ == "n" || v.typ == "percent") && s != "" && len(s) < 16: // a longer one is not exact everywhere
		return json.Number(s)
	case v.typ != "list":
		return s
	case s != "":
		return strings.Split(s, ",")
	}
	return []string{}
}

// add registers a flag for field with the value that field has as its default.
func add[T any](l *Loader, field *T, name, typ, usage string, parse func(string) (T, error), format func(T) string) *about {
	v := &value[T]{about: about{typ: typ, section: l.section}, field: field, parse: parse, format: format}
	l.flags.Var(v, name, usage)
	return &v.about
}

// addBool is add for a flag that may stand without a value.
func addBool(l *Loader, field *bool, name, usage string) *about {
	a := add(l, field, name, "bool", usage, boolean, format)
	l.flags.Lookup(name).NoOptDefVal = "true"
	return a
}

// Table returns every field, in the order of the documentation, with the defaults of a new
// Loader.
func (l *Loader) Table() []Field {
	var fields []Field
	l.flags.VisitAll(func(f *pflag.Flag) {
		v, _ := f.Value.(described)
		a := v.known()
		field := Field{
			Flag: f.Name, Name: fieldName(f.Name), Variable: variable(f.Name), Type: a.typ, Usage: f.Usage, Section: a.section,
			Values: a.values, Default: v.plain(), Live: a.isLive,
		}
		fields = append(fields, field)
	})
	return fields
}

// variable returns the name of a flag's variable of the environment.
func variable(flag string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}
