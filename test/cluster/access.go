// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/lbproxy/lbproxy/internal/lab/nested"
)

// tokenSeconds is how long the token of a kubeconfig is valid.
const tokenSeconds = 24 * 60 * 60

// Manifest returns the path of the file name in deploy/.
func Manifest(name string) (string, error) {
	root, err := nested.Root()
	if err != nil {
		return "", fmt.Errorf("manifest %s: %w", name, err)
	}
	return filepath.Join(root, "deploy", name), nil
}

// KubeconfigFor applies the manifests in the file rules, waits until they are
// in force, and returns the path of a kubeconfig for the ServiceAccount sa,
// with a token that is valid for a day.
func (c *Cluster) KubeconfigFor(ctx context.Context, sa types.NamespacedName, rules string) (string, error) {
	objs, err := c.Apply(ctx, rules)
	if err != nil {
		return "", err
	}
	cfg, err := c.configFor(ctx, sa)
	if err != nil {
		return "", err
	}
	if err := c.awaitRules(ctx, cfg, objs); err != nil {
		return "", fmt.Errorf("service account %s: %w", sa, err)
	}
	path := c.file(sa.Namespace + "-" + sa.Name + ".kubeconfig")
	if err := clientcmd.WriteToFile(kubeconfig(cfg), path); err != nil {
		return "", fmt.Errorf("kubeconfig of %s: %w", sa, err)
	}
	return path, nil
}

// Apply does what kubectl apply --server-side does with the YAML documents in
// file path, and returns the objects. Unknown fields are errors.
func (c *Cluster) Apply(ctx context.Context, path string) ([]*unstructured.Unstructured, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("apply: %w", err)
	}
	client, err := dynamic.NewForConfig(c.admin)
	if err != nil {
		return nil, fmt.Errorf("apply %s: %w", path, err)
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.client.Discovery()))
	var objs []*unstructured.Unstructured
	docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		obj := &unstructured.Unstructured{}
		if err := docs.Decode(obj); errors.Is(err, io.EOF) {
			return objs, nil
		} else if err != nil {
			return nil, fmt.Errorf("apply %s: document %d: %w", path, len(objs), err)
		}
		if len(obj.Object) == 0 { // comments only
			continue
		}
		gvk := obj.GroupVersionKind()
		m, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			return nil, fmt.Errorf("apply %s: %w", path, err)
		}
		// PATCH, because the typed Apply has no field validation.
		patch, err := obj.MarshalJSON()
		if err != nil {
			return nil, fmt.Errorf("apply %s: %s %s: %w", path, gvk.Kind, obj.GetName(), err)
		}
		_, err = client.Resource(m.Resource).Namespace(obj.GetNamespace()).Patch(ctx, obj.GetName(), types.ApplyPatchType,
			patch, metav1.PatchOptions{FieldManager: "lbproxy-test", FieldValidation: metav1.FieldValidationStrict})
		if err != nil {
			return nil, fmt.Errorf("apply %s: %s %s: %w", path, gvk.Kind, obj.GetName(), err)
		}
		objs = append(objs, obj)
	}
}

// configFor returns a configuration with a fresh token of sa.
func (c *Cluster) configFor(ctx context.Context, sa types.NamespacedName) (*rest.Config, error) {
	seconds := int64(tokenSeconds)
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	tok, err := c.client.CoreV1().ServiceAccounts(sa.Namespace).CreateToken(ctx, sa.Name, req, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("token of %s: %w", sa, err)
	}
	cfg := rest.AnonymousClientConfig(c.admin)
	cfg.BearerToken = tok.Status.Token
	return cfg, nil
}

// awaitRules waits until the user of cfg has the first rule of each
// ClusterRole in objs: the authorizer follows RBAC objects through a watch.
func (c *Cluster) awaitRules(ctx context.Context, cfg *rest.Config, objs []*unstructured.Unstructured) error {
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, obj := range objs {
		var role rbacv1.ClusterRole
		if obj.GetKind() != "ClusterRole" {
			continue
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(obj.Object, &role); err != nil {
			return fmt.Errorf("role %s: %w", obj.GetName(), err)
		}
		if len(role.Rules) == 0 {
			continue
		}
		r := role.Rules[0]
		ask := authorizationv1.ResourceAttributes{Group: r.APIGroups[0], Resource: r.Resources[0], Verb: r.Verbs[0]}
		err := c.poll(ctx, "role "+role.Name+": not in force", func(ctx context.Context) error {
			ok, err := allowed(ctx, client, ask)
			if err == nil && !ok {
				err = fmt.Errorf("%s %s: denied", ask.Verb, ask.Resource)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// allowed asks the API server whether the user of client may do what.
func allowed(ctx context.Context, client kubernetes.Interface, what authorizationv1.ResourceAttributes) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &what},
	}
	got, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("access review: %w", err)
	}
	return got.Status.Allowed, nil
}

// kubeconfig returns the file form of cfg: server, authority and token.
func kubeconfig(cfg *rest.Config) clientcmdapi.Config {
	const name = "test"
	f := *clientcmdapi.NewConfig()
	f.Clusters[name] = &clientcmdapi.Cluster{Server: cfg.Host, CertificateAuthorityData: cfg.CAData}
	f.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: cfg.BearerToken}
	f.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	f.CurrentContext = name
	return f
}
