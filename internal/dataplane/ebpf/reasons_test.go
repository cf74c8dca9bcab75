// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"slices"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/server"
)

// TestReasonsAreDocumented compares the reasons with what docs/METRICS.md says.
func TestReasonsAreDocumented(t *testing.T) {
	for _, m := range server.Catalogue() {
		if m.Name != "lbproxy_drops_total" {
			continue
		}
		told := strings.Split(strings.ReplaceAll(m.Labels[0].Values, "`", ""), ", ")
		var there []string
		for _, reason := range reasonNames {
			there = append(there, reason)
		}
		slices.Sort(told)
		if slices.Sort(there); !slices.Equal(told, there) {
			t.Errorf("documented are %q, there are %q", told, there)
		}
		return
	}
	t.Error("no metric of drops")
}
