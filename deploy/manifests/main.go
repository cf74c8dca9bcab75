// SPDX-License-Identifier: Apache-2.0

// Manifests writes what `kubectl apply` and kustomize take, as the Helm chart renders it,
// and the names of the configuration's fields into the chart's schema. make generate
// runs it in the directory deploy.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/lbproxy/lbproxy/deploy/internal/chart"
	"github.com/lbproxy/lbproxy/internal/config"
)

// header begins what is for `kubectl apply -f`.
const header = `# Code generated from chart/lbproxy by make generate. DO NOT EDIT.
#
# lbproxy on every node, in place of kube-proxy.
#
# Image: the name below is a placeholder. Build the image from this repository (make
# image), push it where the nodes can pull it, and put its name (best: its digest) below.
#
# Configuration: config.yaml in the ConfigMap, which deploy/README.md explains.
#
# API server address: pods reach the API server through the ClusterIP of the
# Service default/kubernetes, and lbproxy is what makes ClusterIPs work. Where
# nothing else does (kube-proxy is gone), name the API server in the ConfigMap:
#
#   data:
#     kubernetes-service-host: 192.0.2.10
#     kubernetes-service-port: "6443"
#
# Use an address, or a name that the node's own resolver knows: cluster DNS is
# behind a ClusterIP too. Without it the kubelet's values stay (the ClusterIP),
# which is right only while another proxy still serves it.
`

func main() {
	if err := write("."); err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

// write writes everything that is generated below the directory deploy.
func write(deploy string) error {
	if err := writeSchema(filepath.Join(chart.Dir(deploy), "values.schema.json")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(chart.Dir(deploy), "files", "reloadable-fields"), reloadable(), 0o644); err != nil {
		return err
	}
	out, _, err := chart.Render(chart.Dir(deploy), chart.Values{"namespace": chart.Values{"create": true}})
	if err != nil {
		return err
	}
	for _, name := range []string{"daemonset.yaml", filepath.Join("kustomize", "base", "lbproxy.yaml")} {
		if err := os.WriteFile(filepath.Join(deploy, name), append([]byte(header), out...), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// reloadable lists the fields that lbproxy takes over while it runs.
func reloadable() []byte {
	var names bytes.Buffer
	for _, f := range config.New().Table() {
		if f.Live {
			fmt.Fprintln(&names, f.Name)
		}
	}
	return names.Bytes()
}

// writeSchema puts the fields that a configuration file may have into the schema of the
// chart's values at path.
func writeSchema(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	fields := config.New().Fields()
	delete(fields, "config") // names the file
	names, err := json.Marshal(slices.Sorted(maps.Keys(fields)))
	if err != nil {
		return err
	}
	const begin, end = `"propertyNames": {"enum": `, "}\n"
	head, rest, ok := bytes.Cut(text, []byte(begin))
	_, tail, closed := bytes.Cut(rest, []byte(end))
	if !ok || !closed {
		return fmt.Errorf("%s: has no place for the fields of config", path)
	}
	text = slices.Concat(head, []byte(begin), names, []byte(end), tail)
	if !json.Valid(text) {
		return fmt.Errorf("%s: would be no JSON", path)
	}
	return os.WriteFile(path, text, 0o644)
}
