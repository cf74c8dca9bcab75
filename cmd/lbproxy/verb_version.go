// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
)

// build is what this program was made of.
type build struct {
	Version   string `json:"version"`
	Commit    string `json:"commit"`    // of the source; unknown: nobody said it
	MapLayout string `json:"mapLayout"` // of the pinned maps: the same one is taken over
	Go        string `json:"go"`
	Platform  string `json:"platform"`
}

func thisBuild() build {
	return build{version, cmp.Or(commit, revision(), "unknown"), ebpf.Layout, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
}

// revision returns the commit that the go command noted, or nothing.
func revision() string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}

func (a *app) versionVerb() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, the commit, and the layout of the pinned maps",
		Long: `Print the version, the commit, and the layout of the pinned maps. Two versions with
one layout take over each other's maps: between them an upgrade or a downgrade is a
restart.`,
		Example: `  lbproxy version
  lbproxy version -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			a.entered = true
			b := thisBuild()
			return out.print(a, b, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "lbproxy %s %s %s, commit %s, map layout %s\n", b.Version, b.Go, b.Platform, b.Commit, b.MapLayout)
				return err
			})
		},
	}
	out.register(cmd)
	return cmd
}
