// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"
)

// copyManifests copies the YAML files of a directory to one that may be changed.
func copyManifests(from, to string) error {
	files, err := filepath.Glob(filepath.Join(from, "*.yaml"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(file)), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// edit is one file of the directory that lbproxy watches, and its former text.
type edit struct {
	path   string
	before []byte
}

// removeEndpoint rewrites the file that has the slices of Service s so that they
// do not name pod any more.
func removeEndpoint(dir string, s *service, pod string) (*edit, error) {
	e, err := rewrite(dir, func(slice *discovery.EndpointSlice) bool {
		if slice.Kind != "EndpointSlice" || slice.Namespace+"/"+slice.Labels[discovery.LabelServiceName] != s.name {
			return false
		}
		n := len(slice.Endpoints)
		slice.Endpoints = slices.DeleteFunc(slice.Endpoints, func(e discovery.Endpoint) bool {
			return e.TargetRef != nil && e.TargetRef.Name == pod
		})
		return len(slice.Endpoints) < n
	})
	if err == nil && e == nil {
		err = fmt.Errorf("no file names pod %s as an endpoint of %s", pod, s.name)
	}
	return e, err
}

// annotate rewrites the file that has Service s so that it has an annotation.
func annotate(dir string, s *service, key, value string) (*edit, error) {
	e, err := rewrite(dir, func(svc *corev1.Service) bool {
		if svc.Kind != "Service" || svc.Namespace+"/"+svc.Name != s.name {
			return false
		}
		if svc.Annotations == nil {
			svc.Annotations = map[string]string{}
		}
		svc.Annotations[key] = value
		return true
	})
	if err == nil && e == nil {
		err = fmt.Errorf("no file has Service %s", s.name)
	}
	return e, err
}

// rewrite replaces the first file of dir of which change changes a document. It
// returns nil if there is none.
func rewrite[T any](dir string, change func(*T) bool) (*edit, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		before, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		docs, changed := strings.Split(string(before), separator), false
		for i, doc := range docs {
			var obj T
			if err := yaml.Unmarshal([]byte(doc), &obj); err != nil || !change(&obj) {
				continue // load has reported what does not parse
			}
			out, err := yaml.Marshal(obj)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			docs[i], changed = string(bytes.TrimRight(out, "\n")), true
		}
		if changed {
			e := &edit{file, before}
			return e, e.write([]byte(strings.Join(docs, separator)))
		}
	}
	return nil, nil
}

// undo puts the former text back.
func (e *edit) undo() error { return e.write(e.before) }

// write replaces the file in one step, as editors and GitOps tools do.
func (e *edit) write(text []byte) error {
	tmp := filepath.Join(filepath.Dir(e.path), "..", "rewritten.tmp") // not where lbproxy looks
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, e.path)
}
