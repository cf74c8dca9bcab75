// SPDX-License-Identifier: Apache-2.0

package privilege

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// Missing agrees with what the kernel prints of this thread.
func TestMissing(t *testing.T) {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "CapEff:")
	line, _, _ := strings.Cut(rest, "\n")
	effective, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	for c := range Capability(64) {
		missing, err := Missing(c)
		if err != nil {
			t.Fatal(err)
		}
		has := effective>>c&1 == 1
		if c == BPF || c == Perfmon {
			has = has || effective>>SysAdmin&1 == 1
		}
		if has == (len(missing) == 1) {
			t.Errorf("%s: missing %v, but effective are %x", c, missing, effective)
		}
	}
}

func TestRequire(t *testing.T) {
	const never Capability = 63
	err := Require("this test", never)
	if err == nil || !strings.Contains(err.Error(), "this test needs capability 63") {
		t.Errorf("got %v", err)
	}
	if err := Require("this test"); err != nil {
		t.Errorf("nothing is wanted: %v", err)
	}
	if got := Names([]Capability{BPF, SysAdmin}); got != "CAP_BPF, CAP_SYS_ADMIN" {
		t.Errorf("got %s", got)
	}
}
