// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// FuzzFile: whatever is in a configuration file, it is read, always alike, or refused with a
// reason.
func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "[]", "null", "nodeName: a\nalgorithm: least-connection\n", "clusterCIDR: [10.0.0.0/8, 'fd00::/8']",
		"healthzBindAddress: '[::]:1'\nmaxServices: 99999999999", "nodeName: {a: b}", "nodeName: no", "syncPeriod: 1h1m\nauditPeriod: -1s",
		"devices: [eth*, '']\ndetectLocalMode: BridgeInterface", "a: &a [*a]",
		"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\nconntrack: {maxPerCore: 1}\nclusterCIDR: 10.0.0.0/8",
		"kind: KubeProxyConfiguration\nfeatureGates: {A: true}\nnodePortAddresses: null\nipvs: {syncPeriod: 1s}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		first, err := New().Load([]string{"LBPROXY_CONFIG=" + path})
		if err != nil {
			if err.Error() == "" {
				t.Error("refused without a word")
			}
			return
		}
		again, err := New().Load([]string{"LBPROXY_CONFIG=" + path})
		if err != nil || !reflect.DeepEqual(first, again) {
			t.Errorf("read again: %v, got\n%+v, want\n%+v", err, again, first)
		}
	})
}
