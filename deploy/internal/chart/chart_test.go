// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/lbproxy/lbproxy/deploy/internal/conform"
	"github.com/lbproxy/lbproxy/internal/config"
)

// deployDir is the directory deploy of the repository.
var deployDir = filepath.Join("..", "..")

// everything has another value than the chart's for whatever changes a template.
var everything = Values{
	"image":            Values{"repository": "registry.example.com/net/lbproxy", "digest": "sha256:" + strings.Repeat("ab", 32), "pullPolicy": "Always"},
	"imagePullSecrets": []any{Values{"name": "registry"}},
	"apiServer":        Values{"host": "192.0.2.10", "port": 443},
	"config": Values{
		"clusterCIDR": []any{"10.244.0.0/16", "fd00:10:244::/48"}, "algorithm": "least-connection",
		"healthzBindAddress": "0.0.0.0:20256", "nodePortAddresses": "primary", "logFormat": "json",
	},
	"seLinuxOptions": Values{"type": "spc_t"},
	"scripts":        Values{"hostPath": "/etc/lbproxy-scripts"},
	"paths":          Values{"bpffs": "/sys/fs/bpf", "cgroup": "/sys/fs/cgroup/unified", "state": "/var/run/lbproxy"},
	"resources":      Values{"requests": Values{"cpu": "100m", "memory": "128Mi"}, "limits": Values{"memory": "1Gi"}},
	"affinity": Values{"nodeAffinity": Values{"requiredDuringSchedulingIgnoredDuringExecution": Values{"nodeSelectorTerms": []any{
		Values{"matchExpressions": []any{Values{"key": "proxy", "operator": "NotIn", "values": []any{"other"}}}},
	}}}},
	"tolerations":    []any{Values{"key": "a", "operator": "Exists", "effect": "NoSchedule"}},
	"updateStrategy": Values{"type": "OnDelete"}, "minReadySeconds": 30,
	"podAnnotations": Values{"example.com/a": "b"},
	"podLabels":      Values{"example.com/c": "d"},
	"extraEnv":       []any{Values{"name": "GOMEMLIMIT", "value": "900MiB"}},
	"serviceAccount": Values{"create": true, "name": "proxy", "annotations": Values{"example.com/e": "f"}},
	"namespace":      Values{"create": true},
	"resourceQuota":  Values{"create": true, "pods": 5000},
}

// cases are sets of values that people have.
var cases = map[string]Values{
	"defaults":   nil,
	"everything": everything,
	"privileged": {"privileged": true},
	"no init":    {"init": Values{"enabled": false}},
	"no extras":  {"rbac": Values{"create": false}, "serviceAccount": Values{"create": false, "name": "mine"}},
	"no weights": {"rbac": Values{"podWeights": false}, "config": Values{"nodeWeights": false}},
	"hardened":   {"init": Values{"enabled": false}, "closePodSockets": false},
	"no health":  {"config": Values{"healthzBindAddress": ""}},
}

func TestLint(t *testing.T) {
	for name, values := range cases {
		if err := Lint(Dir(deployDir), values); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Lint(Dir(deployDir), Values{"image": Values{"tagg": "x"}}); err == nil {
		t.Error("a value that is misspelt: no complaint")
	}
}

// objects are a stream's, by kind.
func objects(t *testing.T, stream []byte) map[string]*unstructured.Unstructured {
	t.Helper()
	objs := map[string]*unstructured.Unstructured{}
	for docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(stream), 4096); ; {
		obj := &unstructured.Unstructured{}
		if err := docs.Decode(obj); errors.Is(err, io.EOF) {
			return objs
		} else if err != nil {
			t.Fatalf("%v\n%s", err, stream)
		}
		if objs[obj.GetKind()] != nil {
			t.Fatalf("two of kind %s\n%s", obj.GetKind(), stream)
		}
		objs[obj.GetKind()] = obj
	}
}

// as returns obj as the API's type, which has to have all of its fields.
func as[T any](t *testing.T, obj *unstructured.Unstructured) *T {
	t.Helper()
	typed := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(obj.Object, typed, true); err != nil {
		t.Fatal(err)
	}
	return typed
}

func rendered(t *testing.T, values Values) (map[string]*unstructured.Unstructured, string) {
	t.Helper()
	out, said, err := Render(Dir(deployDir), values)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, out), said
}

func daemonSet(t *testing.T, values Values) *appsv1.DaemonSet {
	t.Helper()
	objs, _ := rendered(t, values)
	return as[appsv1.DaemonSet](t, objs["DaemonSet"])
}

// The quota admits pods of lbproxy's priority, where the API server wants one.
func TestResourceQuota(t *testing.T) {
	if objs, _ := rendered(t, nil); objs["ResourceQuota"] != nil {
		t.Error("there is a quota that nobody asked for")
	}
	for pods, values := range map[string]Values{
		"1G": {"resourceQuota": Values{"create": true}}, "5k": everything, // 5000, as the API writes it
	} {
		objs, _ := rendered(t, values)
		quota := as[corev1.ResourceQuota](t, objs["ResourceQuota"])
		if got := quota.Spec.Hard.Pods().String(); got != pods {
			t.Errorf("the quota is of %s pods, want %s", got, pods)
		}
		want := corev1.ScopedResourceSelectorRequirement{
			ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn,
			Values: []string{as[appsv1.DaemonSet](t, objs["DaemonSet"]).Spec.Template.Spec.PriorityClassName},
		}
		if got := quota.Spec.ScopeSelector; got == nil || len(got.MatchExpressions) != 1 || !reflect.DeepEqual(got.MatchExpressions[0], want) {
			t.Errorf("the quota is for %+v, want %+v", got, want)
		}
	}
}

// An agent that ends again and again is ready in between, and no reason to go on.
func TestMinReadySeconds(t *testing.T) {
	if got := daemonSet(t, nil).Spec.MinReadySeconds; got <= 0 {
		t.Errorf("a pod counts after %d s, want some", got)
	}
	if got := daemonSet(t, everything).Spec.MinReadySeconds; got != 30 {
		t.Errorf("a pod counts after %d s, want 30", got)
	}
}

// What is rendered, and what kustomize builds, is what the API of Kubernetes accepts.
func TestConforms(t *testing.T) {
	swagger, err := conform.Swagger(filepath.Join(deployDir, ".."))
	if err != nil {
		t.Fatal(err)
	}
	checker, err := conform.New(swagger, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range cases {
		out, _, err := Render(Dir(deployDir), values)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := checker.Check(name, out); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{filepath.Join("kustomize", "base"), filepath.Join("kustomize", "example")} {
		out, err := Kustomize(filepath.Join(deployDir, dir))
		if err != nil {
			t.Fatal(err)
		}
		if err := checker.Check(dir, out); err != nil {
			t.Error(err)
		}
	}
	good, _, err := Render(Dir(deployDir), everything)
	if err != nil {
		t.Fatal(err)
	}
	for _, wrong := range [][2]string{ // the checker sees what is wrong
		{"hostNetwork: true", "hostNetworks: true"},
		{"hostNetwork: true", "hostNetwork: yes please"},
		{"kind: DaemonSet", "kind: DemonSet"},
		{"type: spc_t", "kind: spc_t"},
	} {
		bad := strings.Replace(string(good), wrong[0], wrong[1], 1)
		if bad == string(good) || checker.Check(wrong[1], []byte(bad)) == nil {
			t.Errorf("%s in place of %s: no complaint", wrong[1], wrong[0])
		}
	}
}

// lbproxy itself reads the configuration files that the chart and kustomize make.
func TestConfigIsRead(t *testing.T) {
	files := map[string]string{}
	for name, values := range cases {
		objs, _ := rendered(t, values)
		files[name] = as[corev1.ConfigMap](t, objs["ConfigMap"]).Data["config.yaml"]
	}
	example, err := Kustomize(filepath.Join(deployDir, "kustomize", "example"))
	if err != nil {
		t.Fatal(err)
	}
	files["example"] = as[corev1.ConfigMap](t, objects(t, example)["ConfigMap"]).Data["config.yaml"]
	for name, text := range files {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.New().Load([]string{"LBPROXY_CONFIG=" + path})
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
		if name == "everything" && (c.Scripts.Dir != "/etc/lbproxy-scripts" || c.StateDir != "/var/run/lbproxy" || len(c.ClusterCIDR) != 2) {
			t.Errorf("%s: got %+v from\n%s", name, c, text)
		}
	}
}

func TestRefusedValues(t *testing.T) {
	for _, tc := range []struct {
		values Values
		want   string
	}{
		{Values{"images": Values{}}, "images"},
		{Values{"image": Values{"digest": "sha256:12"}}, "digest"},
		{Values{"apiServer": Values{"port": 0}}, "port"},
		{Values{"config": Values{"clusterCidrs": "10.0.0.0/8"}}, "clusterCidrs"},
		{Values{"config": Values{"nodeName": "a"}}, "config.nodeName: is not for all nodes"},
		{Values{"config": Values{"bpffs": "/bpf"}}, "config.bpffs: say it with paths"},
		{Values{"paths": Values{"state": "run"}}, "state"},
		{Values{"resourceQuota": Values{"pods": "many"}}, "pods"},
		{Values{"minReadySeconds": -1}, "minReadySeconds"},
		{Values{"scripts": Values{"hostPath": "scripts"}}, "hostPath"},
	} {
		if _, _, err := Render(Dir(deployDir), tc.values); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: got error %v, want one about %q", tc.values, err, tc.want)
		}
	}
}

// Pods are replaced for what lbproxy cannot take over while it runs, and for nothing else.
func TestRollsOnlyWhenNeeded(t *testing.T) {
	reloadable, err := os.ReadFile(filepath.Join(Dir(deployDir), "files", "reloadable-fields"))
	if err != nil {
		t.Fatal(err)
	}
	template := func(values Values) string {
		text, err := daemonSet(t, values).Spec.Template.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if len(strings.Fields(string(reloadable))) == 0 {
		t.Error("files/reloadable-fields is empty")
	}
	first := template(nil)
	for name, values := range map[string]Values{
		"API server": {"apiServer": Values{"host": "192.0.2.1"}},
		"dataplane":  {"config": Values{"dataplane": "iptables"}},
		"state":      {"paths": Values{"state": "/run/other"}},
	} {
		if template(values) == first {
			t.Errorf("%s: the pods stay", name)
		}
	}
	known := config.New().Fields()
	for _, field := range strings.Fields(string(reloadable)) {
		if field == "healthzBindAddress" { // its port is the probes'
			continue
		}
		if _, ok := known[field]; !ok {
			t.Errorf("files/reloadable-fields: %s is no field", field)
			continue
		}
		if template(Values{"config": Values{field: known[field]}}) != first {
			t.Errorf("%s: the pods are replaced, but it is reloaded", field)
		}
	}
}

// knowsNode tells whether a container has the node's name where lbproxy reads it.
func knowsNode(c corev1.Container) bool {
	return slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
		return e.Name == "LBPROXY_NODE_NAME" && e.ValueFrom != nil && e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "spec.nodeName"
	})
}

// The node's name is in the environment, where whatever is run in the pod finds it:
// lbproxy migrate, as well as the agent.
func TestNodeName(t *testing.T) {
	for name, values := range cases {
		pod := daemonSet(t, values).Spec.Template.Spec
		for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
			named := knowsNode(c)
			if given := strings.Contains(strings.Join(c.Args, " "), "--node-name"); !named || given {
				t.Errorf("%s: container %s: LBPROXY_NODE_NAME is the node's: %v, want true; its arguments name the node: %v, want false", name, c.Name, named, given)
			}
		}
	}
}

func TestNotes(t *testing.T) {
	_, said := rendered(t, nil)
	for _, want := range []string{"apiServer.host is empty", "clusterCIDR is empty", "rollout status daemonset/lbproxy", "label namespace lbproxy pod-security.kubernetes.io/enforce=privileged"} {
		if !strings.Contains(said, want) {
			t.Errorf("the notes do not say %q:\n%s", want, said)
		}
	}
	if _, said = rendered(t, everything); strings.Contains(said, "WARNING") {
		t.Errorf("the notes warn where nothing is wrong:\n%s", said)
	}
}

func TestPrivileges(t *testing.T) {
	pod := daemonSet(t, nil).Spec.Template.Spec
	c := pod.Containers[0]
	sec := c.SecurityContext
	if sec.Privileged != nil || *sec.AllowPrivilegeEscalation || !*sec.ReadOnlyRootFilesystem || sec.Capabilities.Drop[0] != "ALL" {
		t.Errorf("got security context %+v", sec)
	}
	if pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("got %+v, want the runtime's seccomp profile", pod.SecurityContext)
	}
	for _, m := range c.VolumeMounts {
		if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional {
			t.Errorf("%s is mounted for the node, too: the API server refuses that to unprivileged containers", m.Name)
		}
	}
	scripts := daemonSet(t, everything).Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add
	if got, more := len(scripts), len(sec.Capabilities.Add)+4; got != more {
		t.Errorf("with scripts: %d capabilities, want %d", got, more)
	}
	hardened := daemonSet(t, cases["hardened"]).Spec.Template.Spec
	if got := hardened.Containers[0].SecurityContext.Capabilities.Add; hardened.HostPID || len(hardened.InitContainers) > 0 || slices.Contains(got, "SYS_ADMIN") {
		t.Errorf("hardened: capabilities %v, process ids %v, %d init containers", got, hardened.HostPID, len(hardened.InitContainers))
	}
	privileged := daemonSet(t, Values{"privileged": true}).Spec.Template.Spec.Containers[0].SecurityContext
	if !*privileged.Privileged || privileged.Capabilities != nil || privileged.AllowPrivilegeEscalation != nil {
		t.Errorf("privileged: got %+v", privileged)
	}
}
