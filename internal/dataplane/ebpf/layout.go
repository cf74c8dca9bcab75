// SPDX-License-Identifier: Apache-2.0

package ebpf

// Layout is the version of the layout of the pinned maps. Two builds of lbproxy that have
// the same one take over each other's maps; others begin with maps of their own.
const Layout = layoutVersion
