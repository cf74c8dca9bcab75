// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Dropped is how many packets this machine's processors dropped since it began because too
// many waited to be looked at, in whatever network namespace.
func Dropped() (n int, err error) {
	text, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		return 0, fmt.Errorf("dropped packets: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line) // packets, dropped, ...
		if len(f) < 2 {
			return 0, fmt.Errorf("dropped packets: %q", line)
		}
		dropped, err := strconv.ParseUint(f[1], 16, 64)
		if err != nil {
			return 0, fmt.Errorf("dropped packets: %w", err)
		}
		n += int(dropped)
	}
	return n, nil
}
