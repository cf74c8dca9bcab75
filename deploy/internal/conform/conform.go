// SPDX-License-Identifier: Apache-2.0

// Package conform holds manifests to the API of a release of Kubernetes, with
// kubeconform. The schemas come from the OpenAPI document in the Go module of
// k8s.io/kubernetes, because those that kubeconform knows by itself are elsewhere.
package conform

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/yannh/kubeconform/pkg/validator"
)

// Swagger returns the path of the OpenAPI document of the Kubernetes that the API server
// of test/cluster is. It downloads the module if it is not there.
func Swagger(repository string) (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", "k8s.io/kubernetes")
	cmd.Dir = filepath.Join(repository, "test", "cluster", "kube-apiserver")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("module k8s.io/kubernetes: %w", err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("module k8s.io/kubernetes: %w", err)
	}
	return filepath.Join(module.Dir, "api", "openapi-spec", "swagger.json"), nil
}

// Checker checks manifests.
type Checker struct{ validator validator.Validator }

// New returns a Checker with schemas from the OpenAPI document at path swagger, which it
// writes below dir. A field that the API does not have is an error.
func New(swagger, dir string) (*Checker, error) {
	text, err := os.ReadFile(swagger)
	if err != nil {
		return nil, err
	}
	if err := writeSchemas(text, dir); err != nil {
		return nil, fmt.Errorf("%s: %w", swagger, err)
	}
	v, err := validator.New([]string{filepath.Join(dir, "{{ .ResourceKind }}{{ .KindSuffix }}.json")},
		validator.Opts{Strict: true, KubernetesVersion: "master"})
	if err != nil {
		return nil, fmt.Errorf("kubeconform: %w", err)
	}
	return &Checker{v}, nil
}

// Check returns what is wrong with a stream of manifests, which must not be empty.
func (c *Checker) Check(name string, manifests []byte) error {
	var errs []error
	valid := 0
	for _, r := range c.validator.Validate(name, io.NopCloser(bytes.NewReader(manifests))) {
		switch r.Status {
		case validator.Valid:
			valid++
		case validator.Empty:
		default:
			errs = append(errs, fmt.Errorf("%s: %s: %w", name, what(r), r.Err))
		}
	}
	if valid == 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("%s: no manifest", name))
	}
	return errors.Join(errs...)
}

func what(r validator.Result) string {
	sig, err := r.Resource.Signature()
	if err != nil {
		return "document"
	}
	return sig.Kind + " " + sig.Name
}

// kinds are those that lbproxy's manifests may have.
var kinds = []string{"Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "ResourceQuota"}

const refPrefix = "#/definitions/"

type schema = map[string]any

// writeSchemas writes one file for each kind, named as kubeconform looks for it. It has
// the definitions that the kind leads to.
func writeSchemas(swagger []byte, dir string) error {
	var doc struct{ Definitions map[string]schema }
	if err := json.Unmarshal(swagger, &doc); err != nil {
		return err
	}
	for _, def := range doc.Definitions {
		tighten(def)
	}
	written := map[string]bool{}
	for name, def := range doc.Definitions {
		gvks, _ := def["x-kubernetes-group-version-kind"].([]any)
		if len(gvks) != 1 { // those of every group, such as DeleteOptions
			continue
		}
		gvk, _ := gvks[0].(schema)
		kind, _ := gvk["kind"].(string)
		for _, want := range kinds {
			if kind != want {
				continue
			}
			reached := map[string]any{}
			reach(doc.Definitions, name, reached)
			out, err := json.Marshal(schema{"$ref": refPrefix + name, "definitions": reached})
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, fileName(gvk)), out, 0o644); err != nil {
				return err
			}
			written[kind] = true
		}
	}
	if len(written) != len(kinds) {
		return fmt.Errorf("has schemas of %d of %d kinds", len(written), len(kinds))
	}
	return nil
}

// fileName returns daemonset-apps-v1.json: the group's first word, if it has a name.
func fileName(gvk schema) string {
	parts := []string{gvk["kind"].(string)}
	if group, _ := gvk["group"].(string); group != "" {
		first, _, _ := strings.Cut(group, ".")
		parts = append(parts, first)
	}
	return strings.ToLower(strings.Join(append(parts, gvk["version"].(string)), "-")) + ".json"
}

// tighten makes a definition refuse fields that it does not have, and accept the
// numbers that the API takes where it says text.
func tighten(def schema) {
	switch def["format"] {
	case "int-or-string":
		def["type"] = []string{"string", "integer"}
		delete(def, "format")
	}
	if desc, _ := def["description"].(string); strings.HasPrefix(desc, "Quantity is ") {
		def["type"] = []string{"string", "number"}
	}
	if _, has := def["properties"]; has && def["additionalProperties"] == nil {
		def["additionalProperties"] = false
	}
}

// reach collects the definitions that name leads to.
func reach(all map[string]schema, name string, into map[string]any) {
	if _, done := into[name]; done {
		return
	}
	into[name] = all[name]
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case schema:
			if ref, ok := v["$ref"].(string); ok {
				reach(all, strings.TrimPrefix(ref, refPrefix), into)
			}
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(all[name])
}
