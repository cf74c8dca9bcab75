// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strings"
)

// What the file says that it is. A file that says nothing is read as this.
const (
	Version = "lbproxy.io/v1alpha1"
	Kind    = "ProxyConfiguration"

	fieldVersion = "apiVersion"
	fieldKind    = "kind"
)

// isKubeProxy tells whether a file is one of kube-proxy's. The error is for a file that is
// neither kube-proxy's nor ours.
func isKubeProxy(fields map[string]any) (bool, error) {
	kind, hasKind := fields[fieldKind]
	version, hasVersion := fields[fieldVersion]
	switch text, _ := version.(string); {
	case !hasKind && !hasVersion, kind == Kind && version == Version:
		return false, nil
	case kind == kubeProxyKind && strings.HasPrefix(text, kubeProxyGroup):
		return true, nil
	}
	return false, fmt.Errorf("is a %v of %v: want %s of %s, %s of %s, or neither a kind nor an apiVersion",
		orNothing(kind), orNothing(version), Kind, Version, kubeProxyKind, kubeProxyVersion)
}

// wantVersion is the error about another version of kube-proxy's file.
func wantVersion(v any) error { return fmt.Errorf("%v: want %s", v, kubeProxyVersion) }

// orNothing returns what stands for a value that is not there.
func orNothing(v any) any {
	if v == nil {
		return "nothing"
	}
	return v
}
