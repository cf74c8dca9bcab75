// SPDX-License-Identifier: Apache-2.0

package flowtest

import "github.com/lbproxy/lbproxy/internal/dataplane/dptest"

// PacketRow is what becomes of a row where no socket is translated: processes of pods
// and of the node are on the packet path then, as with kube-proxy. What is "" is as in
// the row.
type PacketRow struct {
	Rule, Row string
	To, Gets  string
	Sees      Sees
	Why       string
}

// anybody as PacketRow.Sees says that it is not looked at.
const anybody Sees = "anybody"

// PacketRows returns the rows that differ for a reason of their own; see onPackets for
// the others.
func PacketRows() []PacketRow {
	return []PacketRow{
		{"cluster IP", "node, bound", "", "", node, "a process of the node is no pod: it is masqueraded"},
		{"session affinity", "pod", "", "", anybody, "masqueraded at some of the addresses"},
		{"session affinity", "node, localhost", "localhost localhost", "", "", "at 127.0.0.1 the node's address is another one, thus another client"},
		{"detection by the bridge", "cluster IP, pod", "", "", node, "the pod is not on the bridge"},
		{"no local detection", "Local, a socket of a pod is inside", "", "b0 b1", "", "a pod that is not known is outside"},
		{"two claim an address", "the older one has it, from a pod", "", "", node, "as at any external IP"},
	}
}

// onPackets returns a row as a dataplane without a socket path has it.
func onPackets(rule string, row Row) Row {
	for _, p := range PacketRows() {
		if p.Rule != rule || p.Row != row.Name {
			continue
		}
		if p.To != "" {
			row.To = p.To
		}
		if p.Gets != "" {
			row.Gets = p.Gets
		}
		switch p.Sees {
		case nobody:
		case anybody:
			row.Sees = nobody
		default:
			row.Sees = p.Sees
		}
		return row
	}
	switch row.Differs {
	case socketSource:
		row.Sees = node
	case localhost6:
		row.Gets, row.Sees = string(dptest.Untouched), nobody
	case connectedUDP:
		row.Gets = string(dptest.Refused)
	}
	return row
}
