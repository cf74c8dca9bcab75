// SPDX-License-Identifier: Apache-2.0

// Command etcd is the upstream etcd server that also ends when its standard
// input does: a test that dies closes the pipe, so it leaves no server behind.
package main

import (
	"io"
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	etcdmain.Main(os.Args)
}
