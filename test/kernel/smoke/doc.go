// SPDX-License-Identifier: Apache-2.0

// Package smoke checks that a kernel offers what lbproxy builds on: BTF, cgroup
// and tc programs, network namespaces and veth pairs. Its tests carry the
// build tag root, send packets only inside a namespace of their own, and clean
// up after themselves.
package smoke
