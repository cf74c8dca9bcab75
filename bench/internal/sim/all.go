// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"path/filepath"

	"github.com/lbproxy/lbproxy/bench/scenario"
)

// Read reads a scenario that is to be simulated. An error names the file.
func Read(file string) (*scenario.Scenario, error) {
	sc, err := scenario.Read(file)
	if err != nil {
		return nil, err
	}
	if err := simulable(sc); err != nil {
		return nil, fmt.Errorf("scenario %s: %w", filepath.Base(file), err)
	}
	return sc, nil
}

// simulable returns an error if a scenario is for the lab only, or expects what is no
// metric of the simulator.
func simulable(sc *scenario.Scenario) error {
	if sc.NotSimulated != "" {
		return fmt.Errorf("the simulator does not run it: %s", sc.NotSimulated)
	}
	for i, e := range sc.Expect {
		if _, known := (&Result{}).metric(e.Metric); !known {
			return fmt.Errorf("expect: number %d: no metric %q", i+1, e.Metric)
		}
	}
	return nil
}

// All runs every case with every algorithm, and tells of each case when it has ended.
func All(sc *scenario.Scenario, engineName string, ended func([]*Result)) (*Report, error) {
	engine, err := NewEngine(engineName)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	rep := &Report{Scenario: sc, Engine: engineName}
	for _, load := range sc.Load {
		for _, nodes := range sc.Nodes {
			var results []*Result
			for i := range sc.Algorithms {
				res, err := simulateCase(sc, &sc.Algorithms[i], load, nodes, engine)
				if err != nil {
					return nil, fmt.Errorf("scenario %s, load %g, nodes %d: %w", sc.Name, load, nodes, err)
				}
				results = append(results, res)
			}
			ended(results)
			rep.Results = append(rep.Results, results...)
		}
	}
	rep.Verdicts = verdicts(sc, rep.Results)
	return rep, nil
}
