// SPDX-License-Identifier: Apache-2.0

// Command kube-apiserver is the upstream API server that also ends when its
// standard input does: a test that dies closes the pipe, so it leaves no
// server behind.
package main

import (
	"io"
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
