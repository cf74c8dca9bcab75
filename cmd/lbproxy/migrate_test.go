// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"testing"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/migrate"
)

// TestMigrateBlind: where the node's processes are not seen, that there is no kube-proxy
// says nothing.
func TestMigrateBlind(t *testing.T) {
	a, _, _ := fakeApp(exampleKernel())
	for _, tc := range []struct {
		what string
		may  func() error
		want error
	}{
		{"take over", func() error { return a.mayTakeOver(t.Context(), config.Config{}, &migrate.Found{Blind: true}) }, errCannotTell},
		{"give back", func() error { return a.mayGiveBack(t.Context(), config.Config{}, &migrate.Found{Blind: true}) }, errCannotTell},
		{"take over from one that is seen", func() error {
			return a.mayTakeOver(t.Context(), config.Config{}, &migrate.Found{Blind: true, Processes: []int{7}})
		}, errStillRuns},
	} {
		if err := tc.may(); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.what, err, tc.want)
		}
	}
}
