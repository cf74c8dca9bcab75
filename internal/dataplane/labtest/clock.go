// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// envClock allows to set the clock: it is the whole machine's. make test-kernel sets it, in
// the machine that it boots.
const envClock = "LBPROXY_TEST_CLOCK"

// NeedClock skips t where the clock must not be set.
func NeedClock(t *testing.T) {
	t.Helper()
	if os.Getenv(envClock) == "" {
		t.Skip("make test-kernel runs it")
	}
}

// JumpBy moves the machine's clock.
func JumpBy(t *testing.T, d time.Duration) {
	t.Helper()
	ts := unix.NsecToTimespec(time.Now().Round(0).Add(d).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		t.Fatal(err)
	}
}
