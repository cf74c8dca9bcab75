// SPDX-License-Identifier: Apache-2.0

// The simulator runs the algorithms of internal/algo against servers with queues,
// event by event: see docs/SIMULATOR.md.
//
//	go run ./bench/sim -scenario bench/scenarios/equal.yaml
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"

	"github.com/lbproxy/lbproxy/bench/internal/sim"
)

func main() {
	if err := command(os.Args[1:], os.Stdout); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

// errExpected says that a scenario's expectations do not hold.
var errExpected = errors.New("not as expected")

// command is the program. It returns errExpected after a report whose verdicts
// are not all good.
func command(args []string, out io.Writer) error {
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	file := fs.String("scenario", "", "`FILE` that says what to simulate")
	engineName := fs.String("engine", "ref", "what picks: ref (Go), bpf (the kernel; needs root and the build tag root) or iptables (its rules, in Go)")
	jsonFile := fs.String("json", "", "`FILE` for the results as JSON")
	svgDir := fs.String("svg", "", "`DIR` for plots")
	barsFile := fs.String("bars", "", "`NAME`.svg and NAME.json for a picture of the first case, with its figures")
	seed := fs.Uint64("seed", 0, "replaces the scenario's seed, if not 0")
	shrink := fs.Float64("shrink", 1, "simulate so many times less, in requests and in time")
	profile := fs.String("cpuprofile", "", "`FILE` for a CPU profile")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *file == "" || fs.NArg() > 0 || *shrink < 1 {
		return errors.New("want -scenario FILE, -shrink of 1 or more and nothing else; see -help")
	}
	sc, err := sim.Read(*file)
	if err != nil {
		return err
	}
	sc.Shrink(*shrink)
	if *seed != 0 {
		sc.Seed = *seed
	}
	if *profile != "" {
		stop, err := startProfile(*profile)
		if err != nil {
			return err
		}
		defer stop()
	}
	fmt.Fprintf(out, "%s: %s\n", sc.Name, sc.About)
	rep, err := sim.All(sc, *engineName, func(results []*sim.Result) { writeTable(out, results) })
	if err != nil {
		return err
	}
	writeVerdicts(out, rep.Verdicts)
	if err := errors.Join(writeFiles(rep, *jsonFile, *svgDir), writeBars(rep, *barsFile)); err != nil {
		return err
	}
	for _, v := range rep.Verdicts {
		if !v.OK {
			return fmt.Errorf("scenario %s: %w", sc.Name, errExpected)
		}
	}
	return nil
}

// writeBars writes a picture and what it is drawn from, if it has a name.
func writeBars(rep *sim.Report, name string) error {
	if name == "" {
		return nil
	}
	c := chartOf(rep)
	text, err := c.text()
	if err != nil {
		return fmt.Errorf("figures: %w", err)
	}
	return errors.Join(os.WriteFile(name+".json", text, 0o644), os.WriteFile(name+".svg", c.draw(), 0o644))
}

func writeFiles(rep *sim.Report, jsonFile, svgDir string) error {
	if jsonFile != "" {
		data, err := json.MarshalIndent(rep, "", "  ")
		if err != nil {
			return fmt.Errorf("encode results: %w", err)
		}
		if err := os.WriteFile(jsonFile, append(data, '\n'), 0o644); err != nil {
			return fmt.Errorf("write results: %w", err)
		}
	}
	if svgDir == "" {
		return nil
	}
	if err := os.MkdirAll(svgDir, 0o755); err != nil {
		return fmt.Errorf("write plots: %w", err)
	}
	for name, svg := range plots(rep) {
		if err := os.WriteFile(filepath.Join(svgDir, name), svg, 0o644); err != nil {
			return fmt.Errorf("write plots: %w", err)
		}
	}
	return nil
}

func startProfile(file string) (stop func(), err error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close() // a profile is for looking at, not for keeping
	}, nil
}
