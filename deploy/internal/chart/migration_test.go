// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// longestTry is how many seconds a try to give a node back may take before it fails: the
// time to list Services from an API server that does not answer (cmd/lbproxy, listTimeout).
const longestTry = 60

// rollbackPatch is what docs/MIGRATION.md makes of lbproxy's DaemonSet on the way back.
func rollbackPatch(t *testing.T) []byte {
	t.Helper()
	guide, err := os.ReadFile(filepath.Join(deployDir, "..", "docs", "MIGRATION.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(guide), "kubectl -n lbproxy patch daemonset lbproxy -p '") // by default it is a strategic merge
	patch, _, closed := strings.Cut(rest, "'\n")
	if !found || !closed {
		t.Fatal("docs/MIGRATION.md has no strategic merge patch of lbproxy's DaemonSet")
	}
	return []byte(patch)
}

// The patch of the way back works whatever the values: the pod sees kube-proxy's process,
// knows its node, and is no reason to go on with the next node as long as it fails.
func TestRollbackPatch(t *testing.T) {
	patch := rollbackPatch(t)
	for name, values := range cases {
		before := daemonSet(t, values)
		text, err := json.Marshal(before)
		if err != nil {
			t.Fatal(err)
		}
		patched, err := strategicpatch.StrategicMergePatch(text, patch, appsv1.DaemonSet{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var ds appsv1.DaemonSet
		strict := json.NewDecoder(bytes.NewReader(patched))
		strict.DisallowUnknownFields()
		if err := strict.Decode(&ds); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		pod := ds.Spec.Template.Spec
		if got := ds.Spec.MinReadySeconds; got <= longestTry {
			t.Errorf("%s: a pod counts after %d s, want more than %d", name, got, longestTry)
		}
		if len(pod.Containers) != 1 {
			t.Fatalf("%s: got %d containers, want the one that was there", name, len(pod.Containers))
		}
		c := pod.Containers[0]
		if c.LivenessProbe != nil || c.ReadinessProbe != nil {
			t.Errorf("%s: probes ask for the agent, which does not run", name)
		}
		if !slices.Equal(c.Args[:2], []string{"migrate", "--rollback"}) || !knowsNode(c) || len(c.VolumeMounts) != len(before.Spec.Template.Spec.Containers[0].VolumeMounts) {
			t.Errorf("%s: got arguments %q, environment %v, mounts %v", name, c.Args, c.Env, c.VolumeMounts)
		}
		caps := c.SecurityContext.Capabilities
		if !pod.HostPID || caps == nil || !slices.Contains(caps.Add, "SYS_PTRACE") {
			t.Errorf("%s: the pod cannot see kube-proxy's process: hostPID %v, capabilities %v", name, pod.HostPID, caps)
		}
	}
}
