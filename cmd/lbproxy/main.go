// SPDX-License-Identifier: Apache-2.0

// Lbproxy balances the Services of a Kubernetes cluster on one node, in place of
// kube-proxy. Each verb is one file.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/server"
)

// The exit codes, as exitStatus tells them to people.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2 // the command line or the configuration is wrong
)

const exitStatus = `0  it did what was asked
1  it failed, or what was asked about is not fit
2  the command line or the configuration is wrong: nothing was done`

// version and commit are set by the linker.
var (
	version = "dev"
	commit  = ""
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes the verb that args name and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	a := &app{
		stdout: stdout, stderr: stderr, environ: os.Environ(), kernel: realKernel(),
		ask: server.AskHealth, askResting: server.AskResting, askConfig: server.AskConfig, now: time.Now, terminal: isTerminal,
	}
	return a.execute(args)
}

// app is what verbs share.
type app struct {
	stdout, stderr io.Writer
	environ        []string
	kernel         kernel
	ask            asker
	askResting     func(ctx context.Context, dir string) ([]server.Resting, error) // errors as ask's
	askConfig      func(ctx context.Context, dir string) (server.Config, error)    // errors as ask's
	now            func() time.Time
	terminal       func(io.Writer) bool                     // a person reads what is written there
	newProber      func(health.ProberOptions) health.Prober // nil: health.NewProber
	entered        bool                                     // a verb has begun: the command line was right
}

// usageError is something wrong with what the user said, not with the node.
type usageError struct{ error }

// Unwrap returns the cause.
func (e usageError) Unwrap() error { return e.error }

// execute runs one verb. An error is one line on stderr.
func (a *app) execute(args []string) int {
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case !a.entered || errors.As(err, &usage):
		fmt.Fprintf(a.stderr, "lbproxy: %s (see %s --help)\n", oneLine(err), cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(a.stderr, "lbproxy: %s%s\n", oneLine(err), next(err))
	return exitFailure
}

// nexts are what to do about errors that many verbs have.
var nexts = []struct {
	is   error
	next string
}{
	{server.ErrNoAgent, "is lbproxy run active on this node, with this --state-dir?"},
	{dataplane.ErrNoState, "has lbproxy run ever been active on this node, with this --bpffs?"},
	{errNoDataplane, "lbproxy check tells what is in the way"},
	{errNoSource, "see lbproxy run --help"},
	{fs.ErrPermission, "it takes root: try sudo"},
}

// next returns what to do about err, or nothing.
func next(err error) string {
	for _, n := range nexts {
		if errors.Is(err, n.is) {
			return " (" + n.next + ")"
		}
	}
	return ""
}

// oneLine returns err's text without line breaks.
func oneLine(err error) string {
	var parts []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

// verbs returns every verb: the one list of them. A new one is a file verb_NAME.go with a
// method that returns its command, and an entry here. Its Short, Example and flags are its
// help, its completion and its manual page (docs/man, by make generate); a verb that needs
// the configuration is made by app.verb, which reads it, and prints lists by output.
func (a *app) verbs() []*cobra.Command {
	return []*cobra.Command{
		a.runVerb(), a.checkVerb(), a.getVerb(), a.explainVerb(), a.topVerb(), a.cleanupVerb(), a.migrateVerb(), a.versionVerb(), a.documentVerb(),
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lbproxy",
		Short: "Balances the Services of a Kubernetes cluster on one node, in place of kube-proxy",
		Long: `Balances the Services of a Kubernetes cluster on one node, in place of kube-proxy.

Every flag of "lbproxy run" is also a field of the YAML file that --config names
and a variable of the environment: --node-name is nodeName and LBPROXY_NODE_NAME.
Flags have precedence over the environment, the environment over the file.

Exit codes:
` + indent(exitStatus),
		Example: `  lbproxy check
  lbproxy run --config /etc/lbproxy/config.yaml
  lbproxy get backends -n shop -o json
  source <(lbproxy completion bash)`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{flagError(err)} })
	root.SetGlobalNormalizationFunc(config.Normalize)
	root.AddCommand(a.verbs()...)
	root.InitDefaultCompletionCmd()
	return root
}

// indent moves every line of text to the right, as help has it.
func indent(text string) string { return "  " + strings.ReplaceAll(text, "\n", "\n  ") }

// flagError words a bad value of a flag as one from the file would be.
func flagError(err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	return &config.Error{Field: invalid.GetFlag().Name, Source: "--" + invalid.GetFlag().Name, Err: invalid.Unwrap()}
}

// verb is a command that needs a configuration. flags name those of its flags
// that the command line may have; none means all.
func (a *app) verb(cmd *cobra.Command, flags []string, do func(*cobra.Command, config.Config, *config.Loader) error) *cobra.Command {
	loader := config.New(algo.Names()...)
	loader.Flags(cmd.Flags(), flags...)
	if len(flags) == 0 {
		loader.KubeProxyFlags(cmd.Flags())
	}
	for _, f := range loader.Table() {
		if len(f.Values) > 0 && cmd.Flags().Lookup(f.Flag) != nil {
			complete(cmd, f.Flag, f.Values)
		}
	}
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a.entered = true
		cfg, err := loader.Load(a.environ)
		if err != nil {
			return usageError{err}
		}
		return do(cmd, cfg, loader)
	}
	return cmd
}
