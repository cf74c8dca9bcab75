// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import "testing"

// TestSocketsByFile is what a kernel in lockdown runs, on whatever kernel: the programs that
// find sockets by open files do what their twins do.
func TestSocketsByFile(t *testing.T) {
	was := socketsByFile
	socketsByFile = func() bool { return true }
	defer func() { socketsByFile = was }()
	for name, test := range map[string]func(*testing.T){
		"TestStaleUDP":              TestStaleUDP,
		"TestStaleTCP":              TestStaleTCP,
		"TestStaleFrontends":        TestStaleFrontends,
		"TestEndsOfSockets":         TestEndsOfSockets,
		"TestRecountFindsMiscounts": TestRecountFindsMiscounts,
	} {
		t.Run(name, test)
	}
}
