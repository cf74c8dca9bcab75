// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	// EnvPrefix begins the name of every variable of the environment that is read.
	EnvPrefix = "LBPROXY_"

	fromFlag    = "flag"
	fromDefault = "default"
	configFlag  = "config" // the one that cannot be in the file
	checkFlag   = "health-check"
)

// Error is a value that cannot be used. Errors of one load are joined.
type Error struct {
	Field  string // the flag's name
	Source string // --FLAG, a variable's name, or a file and the field's name in it
	Err    error
}

// Error returns field, source and cause.
func (e *Error) Error() string {
	if e.Source == "" {
		return fmt.Sprintf("%s: %v", e.Field, e.Err)
	}
	return fmt.Sprintf("%s (from %s): %v", e.Field, e.Source, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Loader reads one Config. Its flags are parsed by whoever has the command line,
// before Load.
type Loader struct {
	algorithms []string
	config     Config
	path       string      // --config
	hash       string      // of the file's content
	seen       os.FileInfo // the file before it was read; nil: it was not there
	flags      *pflag.FlagSet
	section    string            // of the fields that are registered now
	sources    map[string]string // by flag name
	unknown    []string
	idle       []string // fields of kube-proxy's file that have no effect

	foreign     []*pflag.Flag // flags of kube-proxy that are none here
	idleFlags   []theirs      // those that have no effect
	bindAddress candidate     // of kube-proxy, which says at which family servers listen

	foreignMode string // of kube-proxy, which Dataplane was given as; empty: none
}

// New returns a Loader with the defaults. algorithms are the names of those that there are;
// none: any name is taken.
func New(algorithms ...string) *Loader {
	l := &Loader{
		algorithms: algorithms,
		config:     Default(),
		flags:      pflag.NewFlagSet("lbproxy", pflag.ContinueOnError),
		sources:    map[string]string{},
	}
	l.flags.SortFlags = false
	l.register(algorithms)
	return l
}

// Flags adds the named flags to fs, or all if there are no names. Fields that
// have no flag there still come from the environment and the file.
func (l *Loader) Flags(fs *pflag.FlagSet, names ...string) {
	fs.SetNormalizeFunc(Normalize)
	l.flags.VisitAll(func(f *pflag.Flag) {
		if len(names) == 0 || slices.Contains(names, f.Name) {
			fs.AddFlag(f)
		}
	})
}

// Normalize turns an alias of a flag into the flag's name. Underscores are dashes, as in
// kube-proxy.
func Normalize(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	name = strings.ReplaceAll(name, "_", "-")
	return pflag.NormalizedName(cmp.Or(aliases[name], name))
}

// Load completes what flags have set with environ, as from os.Environ, and the
// file that --config names. Every error names the field and where it is from.
func (l *Loader) Load(environ []string) (Config, error) {
	l.flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			l.sources[f.Name] = fromFlag
		}
	})
	errs := append(l.fromKubeProxyFlags(), l.fromEnvironment(environ)...)
	if l.path != "" {
		errs = append(errs, l.fromFile()...)
	}
	errs = append(errs, l.bindByFamily()...)
	return l.config, errors.Join(append(errs, l.combinations()...)...)
}

// combinations returns what is wrong with fields that are right by themselves.
func (l *Loader) combinations() (errs []error) {
	c := &l.config
	if c.Kubeconfig != "" && c.Manifests != "" {
		errs = append(errs, &Error{Field: "manifests", Source: l.origin("manifests"),
			Err: fmt.Errorf("excludes kubeconfig (from %s): Services come from one place", l.origin("kubeconfig"))})
	}
	for _, needs := range []struct {
		mode        lb.LocalMode
		flag, value string
	}{
		{lb.LocalBridgeInterface, "pod-bridge-interface", c.PodBridgeInterface},
		{lb.LocalInterfaceNamePrefix, "pod-interface-name-prefix", c.PodInterfaceNamePrefix},
	} {
		const mode = "detect-local-mode"
		switch chosen := c.DetectLocalMode == needs.mode; {
		case chosen && needs.value == "":
			errs = append(errs, &Error{Field: mode, Source: l.origin(mode), Err: fmt.Errorf("%s needs %s", needs.mode, needs.flag)})
		case !chosen && needs.value != "":
			errs = append(errs, &Error{Field: needs.flag, Source: l.origin(needs.flag),
				Err: fmt.Errorf("needs %s %s, which is %s (from %s)", mode, needs.mode, c.DetectLocalMode, l.origin(mode))})
		}
	}
	if c.Health.Probe.Kind == lb.ProbeExec {
		const check = checkFlag
		for _, needs := range [][2]string{{"health-check-script", c.Health.Probe.Script}, {"health-script-dir", c.Scripts.Dir}} {
			if needs[1] == "" {
				errs = append(errs, &Error{Field: check, Source: l.origin(check), Err: fmt.Errorf("exec needs %s", needs[0])})
			}
		}
	}
	return errs
}

// Unknown returns the variables of the environment that look like ours and name
// no field. Those that Kubernetes sets for a Service named lbproxy do not count.
func (l *Loader) Unknown() []string { return l.unknown }

// Idle returns the fields of kube-proxy's file that say something and have no effect,
// sorted.
func (l *Loader) Idle() []string { return l.idle }

// IdleFlags returns the flags of kube-proxy that were given and have no effect, with the
// reason.
func (l *Loader) IdleFlags() [][2]string {
	var all [][2]string
	for _, f := range l.idleFlags {
		all = append(all, [2]string{"--" + f.name, f.why})
	}
	return all
}

// ForeignMode returns the mode of kube-proxy that was given for the dataplane and that
// lbproxy has not, so that Auto is used in its place; or nothing.
func (l *Loader) ForeignMode() string { return l.foreignMode }

// Fields returns every field by its name in the file, as JSON has it.
func (l *Loader) Fields() map[string]any {
	fields := map[string]any{}
	l.flags.VisitAll(func(f *pflag.Flag) { fields[fieldName(f.Name)] = f.Value.(described).plain() })
	return fields
}

// Flagz returns every flag with its value as text.
func (l *Loader) Flagz() map[string]string {
	flags := map[string]string{}
	l.flags.VisitAll(func(f *pflag.Flag) { flags[f.Name] = f.Value.String() })
	return flags
}

// Sources returns where each field is from that is not a default, by its name in
// the file.
func (l *Loader) Sources() map[string]string {
	sources := map[string]string{}
	for name := range l.sources {
		sources[fieldName(name)] = l.origin(name)
	}
	return sources
}

func (l *Loader) origin(flag string) string {
	switch src := cmp.Or(l.sources[flag], fromDefault); src {
	case fromFlag:
		return "--" + flag
	default:
		return src
	}
}

// candidate is a value for a field from one source.
type candidate struct {
	flag, source, text string
}

// take sets the fields that nothing of higher precedence has set.
func (l *Loader) take(cs []candidate) (errs []error) {
	given := map[string]candidate{}
	for _, c := range cs {
		if first, twice := given[c.flag]; twice {
			errs = append(errs, &Error{c.flag, c.source, fmt.Errorf("is also given as %s", first.source)})
			continue
		}
		given[c.flag] = c
		if l.sources[c.flag] != "" {
			continue
		}
		l.sources[c.flag] = c.source
		if err := l.flags.Lookup(c.flag).Value.Set(c.text); err != nil {
			errs = append(errs, &Error{c.flag, c.source, err})
		}
	}
	return errs
}

func (l *Loader) fromEnvironment(environ []string) []error {
	known := l.names(variable)
	var cs []candidate
	for _, kv := range slices.Sorted(slices.Values(environ)) {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, EnvPrefix) {
			continue
		}
		switch flag := known[name]; {
		case flag != "":
			cs = append(cs, candidate{flag, name, value})
		case !serviceLink(name):
			l.unknown = append(l.unknown, name)
		}
	}
	return l.take(cs)
}

// serviceLink tells whether the kubelet sets name for some Service.
func serviceLink(name string) bool {
	return strings.HasSuffix(name, "_SERVICE_HOST") || strings.Contains(name, "_SERVICE_PORT") ||
		strings.HasSuffix(name, "_PORT") || strings.Contains(name, "_PORT_")
}

func (l *Loader) fromFile() []error {
	l.seen = stat(l.path)
	content, err := os.ReadFile(l.path)
	if err != nil {
		return []error{&Error{configFlag, l.origin(configFlag), err}}
	}
	l.hash = hashOf(content)
	var fields map[string]any
	if err := yaml.UnmarshalStrict(content, &fields, useNumber); err != nil {
		err = fmt.Errorf("%s: %w", l.path, err)
		return []error{&Error{configFlag, l.origin(configFlag), err}}
	}
	switch theirs, err := isKubeProxy(fields); {
	case err != nil:
		return []error{&Error{fieldKind, l.path, err}}
	case theirs:
		return l.fromKubeProxy(fields)
	}
	delete(fields, fieldVersion)
	delete(fields, fieldKind)
	known := l.names(fieldName)
	delete(known, fieldName(configFlag))
	var cs []candidate
	var errs []error
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		source := l.path + ": " + field
		flag, ok := known[field]
		if !ok {
			errs = append(errs, &Error{field, l.path, unknownField(field, known)})
			continue
		}
		text, err := scalar(fields[field], l.flags.Lookup(flag).Value.Type())
		if err != nil {
			errs = append(errs, &Error{flag, source, err})
			continue
		}
		cs = append(cs, candidate{flag, source, text})
	}
	return append(errs, l.take(cs)...)
}

func useNumber(d *json.Decoder) *json.Decoder {
	d.UseNumber()
	return d
}

func unknownField(field string, known map[string]string) error {
	for name := range known {
		if strings.EqualFold(name, field) {
			return fmt.Errorf("unknown field: did you mean %s?", name)
		}
	}
	return errors.New("unknown field")
}

// scalar returns the text of a value of the file for a field of type typ: a list
// is joined with commas. What YAML takes for something else than text is refused
// where text is wanted: a node named no would be false, one named 010 would be 8.
func scalar(v any, typ string) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", errors.New("has no value")
	case string:
		return v, nil
	case bool:
		if typ == "bool" {
			return strconv.FormatBool(v), nil
		}
	case json.Number:
		if typ == "n" || typ == "duration" || typ == "percent" || typ == "codes" {
			return v.String(), nil
		}
	case []any:
		items := make([]string, len(v))
		for i := range v {
			item, err := scalar(v[i], typ)
			if _, nested := v[i].([]any); nested || err != nil {
				return "", fmt.Errorf("item %d: want one value", i+1)
			}
			items[i] = item
		}
		return strings.Join(items, ","), nil
	case map[string]any:
		return "", errors.New("has fields of its own: want one value or a list")
	}
	return "", fmt.Errorf("YAML reads it as %v: want text, in quotes", v)
}

// names returns the flag of each name that name makes of flags and their aliases.
func (l *Loader) names(name func(flag string) string) map[string]string {
	names := map[string]string{}
	l.flags.VisitAll(func(f *pflag.Flag) { names[name(f.Name)] = f.Name })
	for alias, flag := range aliases {
		names[name(alias)] = flag
	}
	return names
}

// words are parts of names that kube-proxy's file does not spell as one would think.
var words = map[string]string{"cidr": "CIDR", "ips": "IPs", "nodeport": "nodePort", "nodeports": "nodePorts", "tcp": "TCP", "udp": "UDP"}

// fieldName returns the name in the file of a flag: node-name is nodeName.
func fieldName(flag string) string {
	parts := strings.Split(flag, "-")
	for i, part := range parts {
		part = cmp.Or(words[part], part)
		if i > 0 {
			part = strings.ToUpper(part[:1]) + part[1:]
		}
		parts[i] = part
	}
	return strings.Join(parts, "")
}

// File returns the configuration as a file that says everything that is no default.
func (l *Loader) File() ([]byte, error) {
	defaults := New().Fields()
	fields := map[string]any{fieldVersion: Version, fieldKind: Kind}
	for name, v := range l.Fields() {
		if name != fieldName(configFlag) && !reflect.DeepEqual(v, defaults[name]) {
			fields[name] = v
		}
	}
	return yaml.Marshal(fields)
}
