// SPDX-License-Identifier: Apache-2.0

// Package chart renders and checks the Helm chart of lbproxy with Helm's own library,
// and the kustomize base with kustomize's: no cluster and no other program is needed.
package chart

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"

	helmchart "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"helm.sh/helm/v3/pkg/releaseutil"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// The release that the plain manifests are.
const (
	Release   = "lbproxy"
	Namespace = "lbproxy"
)

// KubeVersion is what the manifests are rendered for and checked against.
const KubeVersion = "v1.37.2"

// notes is the template that helm shows after an installation.
const notes = "NOTES.txt"

// Values are those of a chart; nested maps are map[string]any.
type Values = map[string]any

// Dir returns the chart's directory, below the directory deploy of the repository.
func Dir(deploy string) string { return filepath.Join(deploy, "chart", "lbproxy") }

// Render returns the manifests that the chart in dir makes of values, as one YAML stream
// in the order of installation, and what helm says after it.
func Render(dir string, values Values) (manifests []byte, said string, err error) {
	return render(dir, values, engine.Render)
}

// templates runs the templates of a chart, with or without a cluster to look into.
type templates func(*helmchart.Chart, chartutil.Values) (map[string]string, error)

func render(dir string, values Values, run templates) (manifests []byte, said string, err error) {
	c, err := loader.LoadDir(dir)
	if err != nil {
		return nil, "", fmt.Errorf("chart: %w", err)
	}
	files, err := execute(c, values, run)
	if err != nil {
		return nil, "", err
	}
	for name, text := range maps.All(files) {
		switch {
		case filepath.Base(name) == notes:
			said = text
			delete(files, name)
		case strings.TrimSpace(text) == "":
			delete(files, name)
		}
	}
	hooks, sorted, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, "", fmt.Errorf("chart: %w", err)
	}
	if len(hooks) > 0 {
		return nil, "", errors.New("chart: a manifest is a hook, which only helm understands")
	}
	var out bytes.Buffer
	for _, m := range sorted {
		fmt.Fprintf(&out, "---\n%s\n", strings.TrimSpace(m.Content))
	}
	return out.Bytes(), said, nil
}

// execute runs all templates, by their paths.
func execute(c *helmchart.Chart, values Values, run templates) (map[string]string, error) {
	version, err := chartutil.ParseKubeVersion(KubeVersion)
	if err != nil {
		return nil, err
	}
	caps := chartutil.DefaultCapabilities.Copy()
	caps.KubeVersion = *version
	opts := chartutil.ReleaseOptions{Name: Release, Namespace: Namespace, Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, values, opts, caps)
	if err != nil {
		return nil, fmt.Errorf("values: %w", err)
	}
	files, err := run(c, all)
	if err != nil {
		return nil, fmt.Errorf("templates: %w", err)
	}
	return files, nil
}

// Lint returns what `helm lint --strict` complains of, with values over the chart's own.
func Lint(dir string, values Values) error {
	version, err := chartutil.ParseKubeVersion(KubeVersion)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range lint.AllWithKubeVersion(dir, values, Namespace, version).Messages {
		if m.Severity >= support.WarningSev {
			errs = append(errs, errors.New(m.Error()))
		}
	}
	return errors.Join(errs...)
}

// Kustomize returns what `kustomize build` makes of the directory dir.
func Kustomize(dir string) ([]byte, error) {
	objs, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, fmt.Errorf("kustomize: %w", err)
	}
	return objs.AsYaml()
}
