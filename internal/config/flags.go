// SPDX-License-Identifier: Apache-2.0

package config

import "strings"

// value is a field as pflag wants it.
type value[T any] struct {
	field  *T
	typ    string // for the help text
	parse  func(string) (T, error)
	format func(T) string
}

// plain is implemented by every value.
type plain interface {
	plain() any // what JSON shows
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

func (v *value[T]) plain() any {
	switch field := any(*v.field).(type) {
	case bool, uint32, uint8, int:
		return field
	}
	if s := v.format(*v.field); v.typ == "bool" {
		return s == "true"
	} else if v.typ != "list" {
		return s
	} else if s != "" {
		return strings.Split(s, ",")
	}
	return []string{}
}

// add registers a flag for field with the value that field has as its default.
func add[T any](l *Loader, field *T, name, typ, usage string, parse func(string) (T, error), format func(T) string) {
	l.flags.Var(&value[T]{field: field, typ: typ, parse: parse, format: format}, name, usage)
}

// addBool is add for a flag that may stand without a value.
func addBool(l *Loader, field *bool, name, usage string) {
	add(l, field, name, "bool", usage, boolean, format)
	l.flags.Lookup(name).NoOptDefVal = "true"
}
