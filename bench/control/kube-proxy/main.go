// SPDX-License-Identifier: Apache-2.0

// Command kube-proxy is the upstream kube-proxy.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // what it says of its API client
	_ "k8s.io/component-base/metrics/prometheus/version"  // and of itself
	"k8s.io/kubernetes/cmd/kube-proxy/app"
)

func main() {
	os.Exit(cli.Run(app.NewProxyCommand()))
}
