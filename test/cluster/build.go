// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"

	"github.com/lbproxy/lbproxy/internal/lab/nested"
)

// Binaries are the paths of the two servers of a cluster.
type Binaries struct {
	Etcd      string
	APIServer string
}

// Build returns the servers of the cluster, compiled if they are not cached.
func Build(ctx context.Context) (Binaries, error) {
	paths, err := nested.Build(ctx,
		nested.Program{Dir: "test/cluster/etcd", Module: "go.etcd.io/etcd/server/v3"},
		nested.Program{Dir: "test/cluster/kube-apiserver", Module: "k8s.io/kubernetes", Flags: nested.Kubernetes})
	if err != nil {
		return Binaries{}, err
	}
	return Binaries{Etcd: paths[0], APIServer: paths[1]}, nil
}
