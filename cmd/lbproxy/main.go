// SPDX-License-Identifier: Apache-2.0

// Lbproxy balances the Services of a Kubernetes cluster on one node, in place of
// kube-proxy. Each verb is one file.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/server"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2 // the command line or the configuration is wrong
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes the verb that args name and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	a := &app{
		stdout: stdout, stderr: stderr, environ: os.Environ(), kernel: realKernel(),
		ask: server.AskHealth, askResting: server.AskResting, now: time.Now,
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
	now            func() time.Time
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
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteC()
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case !a.entered || errors.As(err, &usage):
		fmt.Fprintf(a.stderr, "lbproxy: %s (see %s --help)\n", oneLine(err), cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(a.stderr, "lbproxy: %s\n", oneLine(err))
	return exitFailure
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

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lbproxy",
		Short: "Balances the Services of a Kubernetes cluster on one node, in place of kube-proxy",
		Long: `Balances the Services of a Kubernetes cluster on one node, in place of kube-proxy.

Every flag of "lbproxy run" is also a field of the YAML file that --config names
and a variable of the environment: --node-name is nodeName and LBPROXY_NODE_NAME.
Flags have precedence over the environment, the environment over the file.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{
			HiddenDefaultCmd: true,
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{flagError(err)} })
	root.SetGlobalNormalizationFunc(config.Normalize)
	root.AddCommand(a.runVerb(), a.checkVerb(), a.getVerb(), a.explainVerb(), a.topVerb(), a.cleanupVerb(), a.versionVerb())
	return root
}

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
	loader := config.New(algo.Check)
	loader.Flags(cmd.Flags(), flags...)
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
