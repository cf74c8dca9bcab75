// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"strings"
	"testing"

	helmchart "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"
)

// cluster has namespaces, by their names and with their labels, and nothing else.
type cluster map[string]map[string]string

// GetClientFor is how templates look into it.
func (c cluster) GetClientFor(_, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	var objs []runtime.Object
	for name, labels := range c {
		objs = append(objs, &corev1.Namespace{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: kind},
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		})
	}
	client := fake.NewSimpleDynamicClient(scheme.Scheme, objs...)
	return client.Resource(corev1.SchemeGroupVersion.WithResource("namespaces")), false, nil
}

// helm install cannot make its own namespace, and the chart says what to do instead.
func TestNamespaceInCluster(t *testing.T) {
	helms := map[string]string{"app.kubernetes.io/managed-by": "Helm"}
	for name, tc := range map[string]struct {
		cluster cluster
		create  bool
		refused bool
	}{
		"not asked":       {cluster{"kube-system": nil, Namespace: nil}, false, false},
		"not there":       {cluster{"kube-system": nil}, true, true},
		"somebody else's": {cluster{"kube-system": nil, Namespace: nil}, true, true},
		"the release's":   {cluster{"kube-system": nil, Namespace: helms}, true, false},
		"no cluster":      {cluster{}, true, false}, // helm template
	} {
		_, _, err := render(Dir(deployDir), Values{"namespace": Values{"create": tc.create}}, func(c *helmchart.Chart, v chartutil.Values) (map[string]string, error) {
			return engine.RenderWithClientProvider(c, v, tc.cluster)
		})
		if refused := err != nil; refused != tc.refused || refused && !strings.Contains(err.Error(), "kubectl create namespace lbproxy") {
			t.Errorf("%s: got error %v, want one: %v", name, err, tc.refused)
		}
	}
}
