// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The bounds of what can be said about health.
const (
	MinProbeInterval = 100 * time.Millisecond
	MaxProbeInterval = time.Hour
	MinProbeTimeout  = 10 * time.Millisecond
	MaxProbeTimeout  = time.Minute
	MaxGrace         = time.Hour
)

// NoGrace as Health.Grace counts failures from the beginning.
const NoGrace time.Duration = -1

// DefaultHealth returns how backends are watched where neither the cluster's
// configuration nor the Service says it. It is complete.
func DefaultHealth() Health {
	return Health{
		Probe:        Probe{Kind: ProbeNone, Timeout: time.Second, Path: "/", Expect: "200-399"},
		Verify:       SwitchOff,
		Interval:     5 * time.Second,
		FastInterval: time.Second,
		Grace:        NoGrace,
		Rise:         2,
		Fall:         3,
		Passive:      SwitchOn,
		MaxEjected:   30,
		Panic:        25,
		Drain:        SwitchOff,
	}
}

// HealthField is one thing that can be said about health: by a Service in the
// annotation of that name, and for the cluster in the configuration.
type HealthField struct {
	Name  string // such as health-check-path
	Type  string // of the value, for people: name, duration, percent ...
	Usage string // what it is, for people

	// Set puts text into h, unless it returns an error, which quotes little of text.
	Set func(h *Health, text string) error
	// Text returns what Set would read, or nothing if h does not say it.
	Text func(h *Health) string
	// Keep takes over what from says.
	Keep func(h, from *Health)

	use use
}

// use is when a HealthField has an effect, as a set: with each kind of probe by its
// number, and with passive checks. The empty set is always.
type use uint16

const (
	withPassive use = 1 << 15
	withHTTP        = 1<<ProbeHTTP | 1<<ProbeHTTPS
	withProbes      = withHTTP | 1<<ProbeTCP | 1<<ProbeGRPC | 1<<ProbeExec
)

// Idle returns why the field has no effect on h, which is complete; nil: it has one.
func (f *HealthField) Idle(h Health) error {
	kind, passive := h.Probe.Kind, h.Passive == SwitchOn
	if f.use == 0 || f.use>>kind&1 != 0 || f.use&withPassive != 0 && passive {
		return nil
	}
	switch {
	case f.use == withPassive:
		return errors.New("has no effect with health-passive false")
	case f.use&withPassive != 0:
		return fmt.Errorf("has no effect with health-check %s and health-passive false", kind)
	}
	return fmt.Errorf("has no effect with health-check %s", kind)
}

// HealthFields returns all of them, health-check first.
func HealthFields() []HealthField {
	return append(probeFields(), timeFields()...)
}

// probeFields are what a probe does.
func probeFields() []HealthField {
	text := func(s string) string { return s }
	return []HealthField{
		field("health-check", "name", "how backends are probed: none, tcp, http, https, grpc or exec", 0,
			func(h *Health) *ProbeKind { return &h.Probe.Kind }, ParseProbeKind, ProbeKind.String),
		field("health-check-port", "n", "the port that is probed; default: the backend's own", withProbes,
			func(h *Health) *uint16 { return &h.Probe.Port }, optional(parseWhole[uint16](1, 65535)), formatWhole),
		field("health-check-path", "path", "what HTTP probes ask for", withHTTP,
			func(h *Health) *string { return &h.Probe.Path }, checked(CheckPath), text),
		field("health-check-host", "name", "the host that HTTP and gRPC probes name, in TLS too; default: the backend's address", withHTTP|1<<ProbeGRPC,
			func(h *Health) *string { return &h.Probe.Host }, checked(CheckHost), text),
		field("health-check-headers", "lines", "lines of Name: value that HTTP probes send", withHTTP,
			func(h *Health) *string { return &h.Probe.Headers }, optional(ParseHeaders), text),
		field("health-check-expect", "codes", "which status of HTTP is healthy", withHTTP,
			func(h *Health) *string { return &h.Probe.Expect }, optional(parseStatuses), text),
		field("health-check-body", "text", "what the body of an HTTP answer contains; default: anything", withHTTP,
			func(h *Health) *string { return &h.Probe.Body }, checked(CheckBody), text),
		field("health-check-verify", "bool", "whether the certificate of an HTTPS backend must be valid", 1<<ProbeHTTPS,
			func(h *Health) *Switch { return &h.Verify }, parseSwitch, formatSwitch),
		field("health-check-service", "name", "which service gRPC probes ask about; default: the server as a whole", 1<<ProbeGRPC,
			func(h *Health) *string { return &h.Probe.GRPCService }, checked(CheckGRPCService), text),
		field("health-check-script", "name", "which script of the node's directory exec probes run", 1<<ProbeExec,
			func(h *Health) *string { return &h.Probe.Script }, checked(CheckScript), text),
	}
}

// timeFields are when backends are probed, and what becomes of the results.
func timeFields() []HealthField {
	interval := parseDuration(MinProbeInterval, MaxProbeInterval)
	count := parseWhole[uint8](1, 255)
	return []HealthField{
		field("health-check-interval", "duration", "between two probes of a backend", withProbes,
			func(h *Health) *time.Duration { return &h.Interval }, interval, formatDuration),
		field("health-check-fast-interval", "duration", "the same while they contradict what is thought of the backend", withProbes|withPassive,
			func(h *Health) *time.Duration { return &h.FastInterval }, interval, formatDuration),
		field("health-check-timeout", "duration", "how long a whole probe may take", withProbes|withPassive,
			func(h *Health) *time.Duration { return &h.Probe.Timeout }, parseDuration(MinProbeTimeout, MaxProbeTimeout), formatDuration),
		field("health-check-rise", "n", "after how many successes in a row a backend comes back", withProbes|withPassive,
			func(h *Health) *uint8 { return &h.Rise }, count, formatWhole),
		field("health-check-fall", "n", "after how many failures in a row a backend is out", withProbes,
			func(h *Health) *uint8 { return &h.Fall }, count, formatWhole),
		field("health-check-grace", "duration", "after a backend came, while failures do not count unless it was healthy once", withProbes,
			func(h *Health) *time.Duration { return &h.Grace }, parseGrace, formatDuration),
		field("health-passive", "bool", "whether what becomes of connections counts", 0,
			func(h *Health) *Switch { return &h.Passive }, parseSwitch, formatSwitch),
		field("health-max-ejected", "percent", "how many of a pool's backends may be out for what became of connections, at least one", withPassive,
			func(h *Health) *Percent { return &h.MaxEjected }, parsePercent, formatPercent),
		field("health-panic", "percent", "how many of a pool's backends must be left, or health is ignored", withProbes|withPassive,
			func(h *Health) *Percent { return &h.Panic }, parsePercent, formatPercent),
		field("health-drain", "bool", "whether UDP flows leave a backend that is out, as if it were gone", withProbes|withPassive,
			func(h *Health) *Switch { return &h.Drain }, parseSwitch, formatSwitch),
	}
}

// field returns the HealthField whose value is found by at.
func field[T comparable](
	name, typ, usage string, u use, at func(*Health) *T, parse func(string) (T, error), format func(T) string,
) HealthField {
	var unsaid T
	return HealthField{
		Name: name, Type: typ, Usage: usage, use: u,
		Set: func(h *Health, text string) error {
			v, err := parse(text)
			if err == nil {
				*at(h) = v
			}
			return err
		},
		Text: func(h *Health) string {
			if v := *at(h); v != unsaid {
				return format(v)
			}
			return ""
		},
		Keep: func(h, from *Health) { *at(h) = *at(from) },
	}
}

// optional returns parse, by which an empty text is the zero value.
func optional[T any](parse func(string) (T, error)) func(string) (T, error) {
	return func(text string) (v T, err error) {
		if text == "" {
			return v, nil
		}
		return parse(text)
	}
}

// checked returns a parser of texts that check has nothing against.
func checked(check func(string) error) func(string) (string, error) {
	return optional(func(text string) (string, error) { return text, check(text) })
}

// parseStatuses reads statuses and returns them as Probe.Expect has them.
func parseStatuses(text string) (string, error) {
	s, err := ParseExpect(text)
	return s.String(), err
}

func parseWhole[T uint8 | uint16](least, most uint64) func(string) (T, error) {
	return func(text string) (T, error) {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("%s: want a whole number from %d to %d", Quote(text), least, most)
		}
		return T(n), nil
	}
}

func formatWhole[T uint8 | uint16](n T) string { return strconv.FormatUint(uint64(n), 10) }

func parseDuration(least, most time.Duration) func(string) (time.Duration, error) {
	return func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, fmt.Errorf("%s: want a duration such as 5s", Quote(text))
		}
		if d < least || d > most {
			return 0, fmt.Errorf("%s: want from %s to %s", Brief(text), least, most)
		}
		return d, nil
	}
}

func parseGrace(text string) (time.Duration, error) {
	d, err := parseDuration(0, MaxGrace)(text)
	if err == nil && d == 0 {
		d = NoGrace
	}
	return d, err
}

// formatDuration writes what is below 0, which stands for none, as 0s.
func formatDuration(d time.Duration) string { return max(d, 0).String() }

// parsePercent reads a number, with or without a sign for percent.
func parsePercent(text string) (Percent, error) {
	n, err := strconv.ParseUint(strings.TrimSuffix(text, "%"), 10, 64)
	if err != nil || n > 100 {
		return 0, fmt.Errorf("%s: want a whole number from 0 to 100", Quote(text))
	}
	if n == 0 {
		return NoPercent, nil
	}
	return Percent(n), nil
}

func formatPercent(p Percent) string { return strconv.Itoa(int(max(p, 0))) }

func parseSwitch(text string) (Switch, error) {
	switch text {
	case "true":
		return SwitchOn, nil
	case "false":
		return SwitchOff, nil
	}
	return 0, fmt.Errorf("%s: want true or false", Quote(text))
}

func formatSwitch(s Switch) string { return strconv.FormatBool(s == SwitchOn) }
