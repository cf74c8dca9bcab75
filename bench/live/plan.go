// SPDX-License-Identifier: Apache-2.0

package live

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/bench/scenario"
)

// dir has the scenarios, below the root of the repository.
const dir = "bench/scenarios"

// The sets of scenarios.
const (
	Quick = "quick"
	Full  = "full"
)

// quickBlock is how long a block of the quick set is.
const quickBlock = time.Second

// quickServices is the most Services that the quick set makes.
const quickServices = 1000

// arm is a proxy with an algorithm.
type arm struct{ name, algorithm string }

// job is one scenario to run.
type plan struct {
	sc   *scenario.Scenario
	file string
	arms []arm
}

// choose reads scenarios: those of a set, or those of a comma-separated list of names or
// files.
func choose(set, names string) ([]plan, error) {
	files := strings.FieldsFunc(names, func(r rune) bool { return r == ',' })
	if names == "" {
		var err error
		if files, err = filepath.Glob(filepath.Join(dir, "*.yaml")); err != nil {
			return nil, err
		}
	}
	var all []plan
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			file = filepath.Join(dir, file+".yaml")
		}
		sc, err := scenario.Read(file)
		switch {
		case err != nil:
			return nil, err
		case sc.Live == nil && names == "":
			continue
		case sc.Live == nil:
			return nil, fmt.Errorf("scenario %s: it is for the simulator only: it has no live", sc.Name)
		}
		p := plan{sc: sc, file: file}
		if set == Quick {
			quicken(sc)
		}
		for _, text := range sc.Live.Arms {
			name, algorithm, err := scenario.Arm(text)
			if err != nil {
				return nil, err
			}
			p.arms = append(p.arms, arm{name, algorithm})
		}
		if set == Quick {
			p.arms = few(p.arms)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no scenario in %s: run it at the root of the repository", dir)
	}
	return all, nil
}

// quicken makes a scenario so short that it only shows that everything runs.
func quicken(sc *scenario.Scenario) {
	l := sc.Live
	l.Rounds = 1
	l.Seconds = min(l.Seconds, scenario.Duration(quickBlock/4))
	for i := range l.Services {
		l.Services[i] = min(l.Services[i], quickServices)
	}
	slices.Sort(l.Services)
	if l.Services = slices.Compact(l.Services); len(l.Services) > 2 {
		l.Services = []int{l.Services[0], l.Services[len(l.Services)-1]}
	}
	if d := blockTime(sc); l.Paced() && d > quickBlock {
		sc.Shrink(d.Seconds() / quickBlock.Seconds())
	}
}

// few keeps the baseline, the last algorithm of lbproxy, and the last other proxy.
func few(arms []arm) []arm {
	kept := map[string]arm{}
	for _, a := range arms {
		kind := "other"
		if a.name == "direct" || a.name == "lbproxy-ebpf" {
			kind = a.name
		}
		if _, seen := kept[kind]; kind != "direct" || !seen {
			kept[kind] = a
		}
	}
	return slices.DeleteFunc(slices.Clone(arms), func(a arm) bool {
		return a != kept["direct"] && a != kept["lbproxy-ebpf"] && a != kept["other"]
	})
}

// blockTime is how long a block takes.
func blockTime(sc *scenario.Scenario) time.Duration {
	if !sc.Live.Paced() {
		return time.Duration(sc.Live.Seconds)
	}
	return time.Duration(float64(sc.Requests) / sc.Rate(sc.Load[0]) * float64(time.Second))
}

// order is which arm is measured when: all there and back, so that what changes steadily
// on the machine is the same for each: ABCCBA.
func turns(arms, rounds int) []int {
	var out []int
	for range rounds {
		for i := range 2 * arms {
			out = append(out, min(i, 2*arms-1-i))
		}
	}
	return out
}

// duration estimates how long a plan takes.
func (p *plan) duration() time.Duration {
	const around = 500 * time.Millisecond // what a block needs besides
	each := blockTime(p.sc) + around
	if len(p.sc.Changes) > 0 {
		each += recovery(p.sc)
	}
	var sum time.Duration
	for _, services := range p.sc.Live.Services {
		sites := time.Duration(len(p.sites()))
		sum += sites*(1500*time.Millisecond+time.Duration(services)*time.Millisecond) + each*time.Duration(len(turns(len(p.arms), p.sc.Live.Rounds)))
	}
	return sum
}

// sites groups the arms that share a lab: those of one proxy, where the traffic is paced.
func (p *plan) sites() [][]arm {
	var out [][]arm
	for _, a := range p.arms {
		i := slices.IndexFunc(out, func(of []arm) bool { return p.sc.Live.Paced() && of[0].name == a.name })
		if i < 0 {
			out = append(out, []arm{a})
		} else {
			out[i] = append(out[i], a)
		}
	}
	return out
}
