// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// DefaultLockFile is held while a Dataplane is open.
const DefaultLockFile = "/run/lbproxy-iptables.lock"

// ErrRunning is returned by Open while another process serves this node.
var ErrRunning = errors.New("another lbproxy is running")

// lockFile takes the lock that keeps two agents apart, until the file is closed or the
// process ends. The file stays: who removed it would take it from under another.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: it holds the lock on %s", ErrRunning, path)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}
