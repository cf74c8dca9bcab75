// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/algo"
)

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

// check returns everything that is wrong with a scenario whose defaults are
// filled in.
func (sc *Scenario) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !nameRE.MatchString(sc.Name) {
		bad("name: %q: want lower-case letters, digits and dashes", sc.Name)
	}
	if sc.Requests < 1 {
		bad("requests: %d: want at least 1", sc.Requests)
	}
	if sc.Warmup < 0 || sc.Warmup >= 1 {
		bad("warmup: %g: want 0 or more and less than 1", sc.Warmup)
	}
	if len(sc.Load) == 0 {
		bad("load: missing")
	}
	for _, l := range sc.Load {
		if l <= 0 || math.IsInf(l, 0) {
			bad("load: %g: want more than 0", l)
		}
	}
	for _, n := range sc.Nodes {
		if n < 1 || n > 1000 {
			bad("nodes: %d: want 1 to 1000", n)
		}
	}
	if sc.Window < 0 || sc.Delay < 0 || sc.Timeout < 0 || sc.SlowStart < 0 {
		bad("window, delay, timeout, slowStart: want 0 or more")
	}
	bad2 := func(field string, err error) {
		if err != nil {
			bad("%s: %w", field, err)
		}
	}
	bad2("discipline", oneOf(sc.Discipline, "fcfs", "ps"))
	bad2("signal", oneOf(sc.Signal, signals...))
	bad2("backends", sc.checkBackends())
	bad2("arrivals", sc.checkArrivals())
	bad2("service", sc.checkService())
	bad2("clients", sc.checkClients())
	bad2("changes", sc.checkChanges())
	bad2("algorithms", sc.checkAlgorithms())
	bad2("expect", sc.checkExpect())
	if sc.Watch != "" && !sc.hasGroup(sc.Watch) {
		bad("watch: no group %q", sc.Watch)
	}
	if sc.Live != nil {
		bad2("live", sc.Live.check())
	}
	return errors.Join(errs...)
}

var signals = []string{"connect", "first-byte", "last-byte"}

func oneOf(got string, want ...string) error {
	if slices.Contains(want, got) {
		return nil
	}
	return fmt.Errorf("%q: want one of %s", got, strings.Join(want, ", "))
}

func (sc *Scenario) hasGroup(name string) bool {
	return slices.ContainsFunc(sc.Backends, func(g Group) bool { return g.Name == name })
}

func (sc *Scenario) checkBackends() error {
	seen := map[string]bool{}
	total, present := 0, 0
	for _, g := range sc.Backends {
		switch {
		case seen[g.Name]:
			return fmt.Errorf("two groups %q", g.Name)
		case g.Count < 1 || g.Cores < 1 || g.Cores > 1<<20:
			return fmt.Errorf("%s: want a count of 1 or more and 1 to 1048576 cores", g.Name)
		case g.Speed <= 0 || math.IsInf(g.Speed, 0):
			return fmt.Errorf("%s: speed %g: want more than 0", g.Name, g.Speed)
		}
		seen[g.Name] = true
		total += g.Count
		if !g.Absent {
			present += g.Count
		}
	}
	if present == 0 {
		return errors.New("none is there at the start")
	}
	if total > algo.MaxMembers {
		return fmt.Errorf("%d are more than %d", total, algo.MaxMembers)
	}
	return nil
}

func (sc *Scenario) checkArrivals() error {
	if sc.Arrivals.Process == "bursty" && (sc.Arrivals.Burst <= 0 || sc.Arrivals.Pause <= 0) {
		return errors.New("bursty wants burst and pause above 0")
	}
	return oneOf(sc.Arrivals.Process, "poisson", "deterministic", "bursty")
}

func (sc *Scenario) checkService() error {
	s := sc.Service
	switch {
	case s.Mean <= 0:
		return errors.New("mean: want more than 0")
	case s.CV <= 0 || s.Alpha <= 0 || s.Long <= 0 || s.Long >= 1:
		return errors.New("want cv and alpha above 0, long between 0 and 1")
	case (s.Distribution == "pareto" || s.Distribution == "bimodal") && s.Span <= 1:
		return errors.New("span: want more than 1")
	}
	return oneOf(s.Distribution, "exponential", "deterministic", "lognormal", "pareto", "bimodal")
}

func (sc *Scenario) checkClients() error {
	if sc.Clients.Count < 1 || sc.Clients.Count > 1<<20 || sc.Clients.Zipf < 0 {
		return errors.New("want a count of 1 to 1048576 and zipf of 0 or more")
	}
	return nil
}

func (sc *Scenario) checkChanges() error {
	for i, c := range sc.Changes {
		err := oneOf(c.Action, ChangeAdd, ChangeRemove, ChangeSlow, ChangeFreeze, ChangeBlackhole, ChangeFail,
			ChangeRecover, ChangeWeight, ChangeAlgorithm, ChangeRate)
		switch {
		case err != nil:
		case c.At < 0:
			err = errors.New("at: want 0 or more")
		case c.Action == ChangeAlgorithm:
			err = checkName(c.Algorithm)
		case (c.Action == ChangeSlow || c.Action == ChangeRate) && (c.Factor <= 0 || math.IsInf(c.Factor, 0)):
			err = fmt.Errorf("factor: %g: want more than 0", c.Factor)
		case c.Action != ChangeRate && !sc.hasGroup(c.Backends):
			err = fmt.Errorf("backends: no group %q", c.Backends)
		}
		if err != nil {
			return fmt.Errorf("number %d: %w", i+1, err)
		}
	}
	return nil
}

// checkName accepts the names of internal/algo and the oracles.
func checkName(name string) error {
	if name == OracleJSQ || name == OracleSED {
		return nil
	}
	return algo.Check(name)
}

func (sc *Scenario) checkAlgorithms() error {
	if len(sc.Algorithms) == 0 {
		return errors.New("missing")
	}
	seen := map[string]bool{}
	for _, a := range sc.Algorithms {
		if seen[a.Label] {
			return fmt.Errorf("two are labelled %q", a.Label)
		}
		seen[a.Label] = true
		if err := oneOf(a.Signal, signals...); err != nil {
			return fmt.Errorf("%s: signal: %w", a.Label, err)
		}
		if *a.SlowStart < 0 {
			return fmt.Errorf("%s: slowStart: want 0 or more", a.Label)
		}
		if err := checkTrial(a); err != nil {
			return fmt.Errorf("%s: trial: %w", a.Label, err)
		}
		if err := checkName(a.Name); err != nil {
			return err
		}
	}
	return nil
}

var busyRules = []string{"decay", "hold", "age", "open"}

func checkTrial(a Algorithm) error {
	switch t := a.Trial; {
	case t == nil:
		return nil
	case a.Name != LeastConnection && a.Name != LeastTime:
		return fmt.Errorf("only of %s and %s", LeastConnection, LeastTime)
	case t.Compare != nil && *t.Compare < 0, t.Average < 0, t.Bits < 0 || t.Bits > 32:
		return errors.New("want compare and average of 0 or more, bits of 0 to 32")
	case t.Busy != "" && oneOf(t.Busy, busyRules...) != nil:
		return fmt.Errorf("busy: %w", oneOf(t.Busy, busyRules...))
	case t.Busy == "open" && t.HalfLife < 0:
		return errors.New("open wants a halfLife")
	case t.Scatter && (t.Compare == nil || *t.Compare == 0):
		return errors.New("scatter wants compare")
	}
	return nil
}

func (sc *Scenario) checkExpect() error {
	labels := map[string]bool{"": true}
	for _, a := range sc.Algorithms {
		labels[a.Label] = true
	}
	for i, e := range sc.Expect {
		switch {
		case e.Algorithm == "" || !labels[e.Algorithm] || !labels[e.Of]:
			return fmt.Errorf("number %d: no algorithm labelled %q or %q", i+1, e.Algorithm, e.Of)
		case e.AtMost == nil && e.AtLeast == nil:
			return fmt.Errorf("number %d: want atMost or atLeast", i+1)
		case e.Load != 0 && !slices.Contains(sc.Load, e.Load):
			return fmt.Errorf("number %d: no case with load %g", i+1, e.Load)
		case e.Nodes != 0 && !slices.Contains(sc.Nodes, e.Nodes):
			return fmt.Errorf("number %d: no case with %d nodes", i+1, e.Nodes)
		}
	}
	return nil
}
