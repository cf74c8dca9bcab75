// SPDX-License-Identifier: Apache-2.0

// Package fail holds tests that end badly, for the harness to notice. go test
// ./... does not see it.
package fail

import (
	"os"
	"testing"
	"time"
)

func TestFail(t *testing.T) { t.Error("as asked") }

// TestWarn sets the taint bit of a kernel warning.
func TestWarn(t *testing.T) {
	if err := os.WriteFile("/proc/sys/kernel/tainted", []byte("512"), 0); err != nil {
		t.Fatal(err)
	}
}

// TestPanic crashes the kernel, but only in the machine.
func TestPanic(t *testing.T) {
	if os.Getenv("LBPROXY_VM") == "" {
		t.Fatal("not in the test machine")
	}
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		t.Fatal(err)
	}
}

func TestHang(t *testing.T) { time.Sleep(time.Hour) }
