// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestProcesses: who is taken for a kube-proxy of this node, and when nobody can tell.
func TestProcesses(t *testing.T) {
	const host, ofPod, listens = initialPIDs, "pid:[4026533000]", "4711"
	type proc struct{ name, net, socket string } // net "": it may not be looked at
	for _, tc := range []struct {
		what  string
		ids   string
		procs map[int]proc
		want  []int
		blind bool
	}{
		{"none", host, map[int]proc{1: {"systemd", "node", ""}}, nil, false},
		{"kube-proxy", host, map[int]proc{7: {"kube-proxy", "node", ""}, 8: {"kube-proxy", "pod", ""}}, []int{7}, false},
		{"one that may not be looked at", host, map[int]proc{7: {"kube-proxy", "", ""}}, []int{7}, false},
		{"k3s with one in it", host, map[int]proc{7: {"k3s-server", "node", listens}}, []int{7}, false},
		{"k3s without", host, map[int]proc{7: {"k3s-server", "node", "1"}}, nil, false},
		{"MicroK8s with one in it", host, map[int]proc{7: {"kubelite", "node", listens}}, []int{7}, false},
		{"one that may not be looked at, in it", host, map[int]proc{7: {"kubelite", "node", "denied"}}, []int{7}, false},
		{"somebody else's port", host, map[int]proc{7: {"lbproxy", "node", listens}}, nil, false},
		{"without hostPID", ofPod, map[int]proc{1: {"lbproxy", "node", ""}}, nil, true},
		{"with hostPID, the node is a container", ofPod, map[int]proc{1: {"systemd", "node", ""}, 5: {"kubelet", "node", ""}}, nil, false},
	} {
		dir := t.TempDir()
		links := map[string]string{"thread-self/ns/net": "node", "thread-self/ns/pid": tc.ids}
		put := func(name, text string) {
			t.Helper()
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		const line = "   %d: 00000000:%04X 00000000:0000 %s 00000000:00000000 00:00000000 00000000     0        0 %s 1 0 100 0 0 10 0\n"
		put("thread-self/net/tcp", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"+
			fmt.Sprintf(line, 0, 6443, "0A", "1")+fmt.Sprintf(line, 1, 10249, "01", "1")+fmt.Sprintf(line, 2, 10256, "0A", listens))
		for id, p := range tc.procs {
			put(fmt.Sprintf("%d/comm", id), p.name+"\n")
			links[fmt.Sprintf("%d/ns/net", id)] = p.net
			put(fmt.Sprintf("%d/fd/3", id), "")
			if links[fmt.Sprintf("%d/fd/3", id)] = "socket:[" + p.socket + "]"; p.socket == "denied" {
				links[fmt.Sprintf("%d/fd/3", id)] = ""
			}
		}
		got, blind, err := procfs{dir, func(name string) (string, error) {
			rel, _ := strings.CutPrefix(name, dir+"/")
			link, ok := links[rel]
			switch {
			case !ok:
				return "", fmt.Errorf("%s: %w; there are %q", rel, fs.ErrNotExist, slices.Collect(maps.Keys(links)))
			case link == "":
				return "", fs.ErrPermission
			}
			return link, nil
		}}.processes()
		if err != nil || !slices.Equal(got, tc.want) || blind != tc.blind {
			t.Errorf("%s: got %v, blind %v, error %v, want %v and %v", tc.what, got, blind, err, tc.want, tc.blind)
		}
	}
}
