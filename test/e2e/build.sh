#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds the programs of the e2e cluster from the Go module proxy. What is in the cache
# of the same sources stays: the first time takes 10 minutes and more.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

export CGO_ENABLED=0 GOWORK=off GOFLAGS='' # static: some of them go into empty images
mkdir -p "$bin"
exec 9>"$cache/lock"
flock 9

version_of() { # DIRECTORY MODULE
	awk -v module="$2" '$1 == "require" { sub("require ", "") } $1 == module { print $2; exit }' "$1/go.mod"
}

kubernetes_flags() { # VERSION, as release builds are stamped
	local v=k8s.io/component-base/version minor=${1#*.}
	echo "-X $v.gitVersion=$1 -X $v.gitMajor=1 -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean" \
		"-X $v.gitCommit=$(printf '0%.0s' {1..40}) -X $v.buildDate=2026-01-01T00:00:00Z"
}

# sources PACKAGE...: what they are built of, in the module's directory
sources() {
	local -a packages=()
	local package
	for package; do [[ $package != .* ]] || packages+=("$package"); done
	find . -maxdepth 1 -name 'go.*' -exec cat {} +
	[[ ${#packages[@]} == 0 ]] || find "${packages[@]}" -name '*.go' -print0 | sort -z | xargs -0 cat
}

# build NAME DIRECTORY MODULE FLAGS 'GO-COMMAND' PACKAGE...: into .cache/e2e/NAME-VERSION-SUM.
# MODULE is the one that has the version; empty: there is none
build() {
	local name=$1 dir=$root/$2 flags="-s -w $4" version="" sum out start=$SECONDS
	[[ -z $3 ]] || version=$(version_of "$dir" "$3")
	local -a command
	read -ra command <<<"$5"
	shift 5
	sum=$(cd "$dir" && sources "$@" | cat - <(go version && echo "$flags $*") | sha256sum)
	out=$cache/$name${version:+-$version}-${sum:0:8}
	if [[ ! -d $out ]]; then
		rm -rf "$out.part"
		mkdir "$out.part"
		(cd "$dir" && nice -n 10 go "${command[@]}" -trimpath -ldflags "$flags" -o "$out.part/" "$@") || die "build of $name"
		mv "$out.part" "$out"
		say "built $name $version in $((SECONDS - start)) s"
	fi
	ln -sf "$out"/* "$bin/"
}

kubernetes=$(kubernetes_flags "$(version_of "$e2e/kubernetes" k8s.io/kubernetes)")
build etcd test/cluster/etcd go.etcd.io/etcd/server/v3 '' build .
build containerd test/e2e/containerd github.com/containerd/containerd/v2 '' build tool
build kubernetes test/e2e/kubernetes k8s.io/kubernetes "$kubernetes" build tool ./loadbalancer
build suite test/e2e/kubernetes k8s.io/kubernetes "$kubernetes" 'test -c' ./suite
build coredns test/e2e/coredns github.com/coredns/coredns '' build .
build own test/e2e '' '' build ./pause ./traffic
