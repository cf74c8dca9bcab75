#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes the container images that upstream's tests ask for by name, as archives that
# containerd imports: from programs of build.sh, and a Debian userland in place of
# Alpine's. There is no registry.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 9>"$cache/lock"
flock 9
# The programs are links into directories that are named after what they were built of.
sum=$({ cat "$0" && readlink "$bin"/*; } | sha256sum)
images=$cache/images-${sum:0:8}
if [[ -d $images ]]; then
	ln -sfn "$images" "$cache/images"
	exit 0
fi
work=$(mktemp -d "$cache/images.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/out"

# Debian 12 with the tools that test images have.
userland=$cache/userland-bookworm-1.tar
if [[ ! -e $userland ]]; then
	say "Debian userland"
	debootstrap --variant=minbase \
		--include=bind9-dnsutils,busybox,ca-certificates,conntrack,curl,iperf,iproute2,iptables,netcat-openbsd,nftables,procps,socat,wget \
		bookworm "$work/userland" http://deb.debian.org/debian >"$work/debootstrap.log" 2>&1 ||
		die "debootstrap: $(tail -n 5 "$work/debootstrap.log")"
	rm -rf "$work/userland"/{dev,var/cache/apt,var/lib/apt/lists,usr/share/{doc,man,locale,info}}/*
	mkdir -p "$work/userland/uploads"
	tar -C "$work/userland" --numeric-owner -cf "$userland.part" .
	mv "$userland.part" "$userland"
fi

# layer [FILE...]: a directory with these programs, to be filled and given to image
layer() {
	rm -rf "$work/layer"
	mkdir "$work/layer"
	[[ $# == 0 ]] || cp -L "$@" "$work/layer/"
}

json() { # WORD...: a list of strings
	local IFS=$'\n'
	[[ $# == 0 ]] || jq -Rnc '[inputs]' <<<"$*"
}

# image FILE BASE ENTRYPOINT CMD NAME...: writes an archive of two layers at most, BASE,
# an archive of files or nothing, and what is in the layer's directory
image() {
	local out=$work/out/$1.tar base=$2 entrypoint=$3 cmd=$4 dir=$work/image file
	local -a sums=() layers=()
	shift 4
	rm -rf "$dir"
	mkdir "$dir"
	[[ -z $base ]] || ln -s "$base" "$dir/base.tar"
	[[ -z $(ls -A "$work/layer") ]] ||
		tar -C "$work/layer" --numeric-owner --owner=0 --group=0 --mtime=@0 -cf "$dir/own.tar" .
	for file in "$dir"/*.tar; do
		layers+=("${file##*/}")
		sums+=("sha256:$(sha256sum <"$file" | cut -d ' ' -f 1)")
	done
	jq -n --argjson entrypoint "${entrypoint:-null}" --argjson cmd "${cmd:-null}" --argjson sums "$(json "${sums[@]}")" \
		'{architecture: "amd64", os: "linux", rootfs: {type: "layers", diff_ids: $sums}, config: {
		  Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
		  Entrypoint: $entrypoint, Cmd: $cmd, WorkingDir: "/"}}' >"$dir/config.json"
	jq -n --argjson names "$(json "$@")" --argjson layers "$(json "${layers[@]}")" \
		'[{Config: "config.json", RepoTags: $names, Layers: $layers}]' >"$dir/manifest.json"
	tar -C "$dir" -chf "$out" manifest.json config.json "${layers[@]}"
}

# once_wget: GNU wget tries 20 times where busybox's, for which tests are made, does once
once_wget() {
	mkdir -p "$work/layer/etc"
	echo "tries = 1" >"$work/layer/etc/wgetrc"
}

# busybox_for APPLET...: what Debian's tools lack. (The static busybox crashes when it
# looks up a name, so it is this one.)
busybox_for() {
	local applet
	mkdir -p "$work/layer/usr/bin"
	for applet; do ln -s busybox "$work/layer/usr/bin/$applet"; done
}

say "images"
tests=registry.k8s.io/e2e-test-images
layer "$bin/pause"
image pause '' '["/pause"]' '' registry.k8s.io/pause:3.10.2
layer "$bin/coredns"
mkdir -p "$work/layer/etc" "$work/layer/tmp"
image coredns '' '["/coredns"]' '' docker.io/lbproxy-e2e/coredns:1
layer "$bin/traffic"
image traffic '' '["/traffic"]' '' docker.io/lbproxy-e2e/traffic:1
layer "$bin/agnhost"
image nginx '' '["/agnhost"]' '["netexec", "--http-port=80"]' $tests/nginx:1.27.0-2 # a web server at port 80
layer "$bin/regression-issue-74839"
image regression-issue-74839 '' '["/regression-issue-74839"]' '' $tests/regression-issue-74839:1.5
layer "$bin/agnhost" "$bin/coredns" # it is the DNS server of some tests
ln -s agnhost "$work/layer/agnhost-2"
once_wget
busybox_for httpd vi ping
porter=$(cd "$e2e/kubernetes" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)/test/images/agnhost/porter
install -m 0644 "$porter"/localhost.* "$work/layer/"
image agnhost "$userland" '["/agnhost"]' '["pause"]' $tests/agnhost:2.66.1 $tests/agnhost:2.55
layer
once_wget
busybox_for httpd vi ping telnet traceroute ifconfig route
image busybox "$userland" '' '["sh"]' $tests/busybox:1.37.0-2
layer
image userland "$userland" '' '["bash"]' $tests/glibc-dns-testing:2.1.1 registry.k8s.io/build-image/distroless-iptables:v0.9.9

mv "$work/out" "$images"
ln -sfn "$images" "$cache/images"
