// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/bench/control/fakeapi"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lab/nested"
)

// newCluster builds kube-proxy, and serves the rig's manifests as an API server would, on
// the node's loopback. backend is that of the programs kube-proxy finds.
func (r *rig) newCluster(backend string) *cluster {
	r.t.Helper()
	paths, err := nested.Build(r.t.Context(), nested.Program{
		Dir: "bench/control/kube-proxy", Module: "k8s.io/kubernetes", Flags: nested.Kubernetes,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	api := r.apiServer()
	api.put(r.objects()...)
	api.put(nodeObject())
	r.kubelet()
	return &cluster{r: r, path: paths[0], kubeconfig: api.kubeconfig, env: []string{
		"PATH=" + r.programs(backend) + string(filepath.ListSeparator) + os.Getenv("PATH"),
		"XTABLES_LOCKFILE=" + filepath.Join(r.lab.Dir(), "xtables.lock"),
	}}
}

// kubelet starts a process of that name. Where tests run in a container, lbproxy tells by it
// that it sees the processes of the node.
func (r *rig) kubelet() {
	r.t.Helper()
	sleep, err := exec.LookPath("sleep")
	path := filepath.Join(r.lab.Dir(), "kubelet")
	if err == nil {
		err = os.Symlink(sleep, path)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.CommandContext(r.t.Context(), path, "infinity")
	cmd.Args[0] = "sleep"
	r.launch(cmd)
}

// programs is a directory of the names that kube-proxy calls iptables by.
func (r *rig) programs(backend string) string {
	r.t.Helper()
	dir := filepath.Join(r.lab.Dir(), "programs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, end := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(name + "-" + backend + end)
			if err == nil {
				err = os.Symlink(path, filepath.Join(dir, name+end))
			}
			if err != nil {
				r.t.Fatal(err)
			}
		}
	}
	return dir
}

// objects are the manifests, with what an API server fills in.
func (r *rig) objects() (objects []fakeapi.Object) {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.dir, "*.yaml"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			r.t.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(text), "---\n") {
			obj := fakeapi.Object(&discovery.EndpointSlice{})
			if strings.Contains(doc, "kind: Service\n") {
				obj = &corev1.Service{}
			}
			if err := yaml.Unmarshal([]byte(doc), obj); err != nil {
				r.t.Fatal(err)
			}
			fill(obj)
			objects = append(objects, obj)
		}
	}
	return objects
}

// fill sets what the API server would.
func fill(obj fakeapi.Object) {
	proto := func(p *corev1.Protocol) {
		if *p == "" {
			*p = corev1.ProtocolTCP
		}
	}
	switch obj := obj.(type) {
	case *corev1.Service:
		if obj.Spec.Type == "" {
			obj.Spec.Type = corev1.ServiceTypeClusterIP
		}
		if len(obj.Spec.ClusterIPs) == 0 {
			obj.Spec.ClusterIPs = []string{obj.Spec.ClusterIP}
		}
		if len(obj.Spec.IPFamilies) == 0 {
			obj.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
		}
		cluster := corev1.ServiceInternalTrafficPolicyCluster
		obj.Spec.InternalTrafficPolicy = &cluster
		if obj.Spec.Type != corev1.ServiceTypeClusterIP && obj.Spec.ExternalTrafficPolicy == "" {
			obj.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
		}
		if obj.Spec.SessionAffinity == "" {
			obj.Spec.SessionAffinity = corev1.ServiceAffinityNone
		}
		for i := range obj.Spec.Ports {
			proto(&obj.Spec.Ports[i].Protocol)
		}
	case *discovery.EndpointSlice:
		for i := range obj.Ports {
			if obj.Ports[i].Protocol == nil {
				obj.Ports[i].Protocol = new(corev1.Protocol)
			}
			proto(obj.Ports[i].Protocol)
			if obj.Ports[i].Name == nil {
				obj.Ports[i].Name = new(string)
			}
		}
		yes, no := true, false
		for i := range obj.Endpoints {
			obj.Endpoints[i].Conditions = discovery.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}
		}
	}
}

// nodeObject is the node on which everything runs.
func nodeObject() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: lab.Node, Labels: map[string]string{corev1.LabelHostname: lab.Node}},
		Spec:       corev1.NodeSpec{PodCIDR: lab.NodePods4.String(), PodCIDRs: []string{lab.NodePods4.String()}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: lab.NodeAddr4.String()},
			{Type: corev1.NodeInternalIP, Address: lab.NodeAddr6.String()},
			{Type: corev1.NodeHostName, Address: lab.Node},
		}},
	}
}
