// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// processName is what a kube-proxy's name begins with.
const processName = "kube-proxy"

// processes returns the ids of the processes of kube-proxy in the network namespace of the
// calling thread. They are seen only from the process id namespace of the host.
func processes(proc string) (pids []int, err error) {
	own, err := os.Readlink(filepath.Join(proc, "thread-self/ns/net"))
	if err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	dirs, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("processes: %w", err)
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join(proc, d.Name(), "comm"))
		if err != nil || !strings.HasPrefix(string(name), processName) {
			continue // it has ended, or is another one
		}
		if ns, err := os.Readlink(filepath.Join(proc, d.Name(), "ns/net")); err == nil && ns == own {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
