// SPDX-License-Identifier: Apache-2.0

// Package trial tries lbproxy as a new user would: the program that users get, on
// a directory of manifests, in a lab. It runs every command that README.md shows,
// edits what is served, and does what goes wrong on real nodes. Its tests carry
// the build tag root.
package trial
