#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that make targets need and this machine lacks.
# usage: hack/deps.sh TARGET...
#
# As root it runs apt-get; otherwise it prints the line to type and fails. What
# is there already is not touched, so a prepared machine needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

# need NAME PACKAGE: PACKAGE is wanted unless NAME is a file or a command.
wanted=()
need() {
	[[ -e $1 ]] || command -v "$1" >/dev/null || wanted+=("$2")
}

# The package lists must know the kernel that test/kernel downloads.
lists=true

for target in "$@"; do
	case $target in
	build | demo | test-cluster | fuzz | bench)
		;; # the Go toolchain is enough
	test-unit) # -race and the C twins of internal/algo
		need gcc gcc
		need /usr/include/stdio.h libc6-dev
		need cpio cpio # reads what test/kernel writes
		;;
	test-root)
		need gcc gcc
		need /usr/include/stdio.h libc6-dev
		need cpio cpio
		need iptables iptables
		need ip6tables-restore iptables
		need nft nftables
		need chromium chromium # looks at the web page
		need clang-19 clang-19 # for a version of lbproxy with other tables
		need llvm-strip-19 llvm-19
		need nginx nginx-light # beside which a scenario of the bench runs
		need /usr/lib/nginx/modules/ngx_stream_module.so libnginx-mod-stream
		;;
	test-deploy)
		need runc runc
		need iptables iptables
		;;
	cluster-up)
		need runc runc
		need /usr/lib/cni/ptp containernetworking-plugins
		need debootstrap debootstrap
		need iptables iptables
		need nft nftables
		need conntrack conntrack
		need openssl openssl
		need jq jq
		need pgrep procps
		;;
	image-lock) # checks the archive's signature
		need gpgv gpgv
		need /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
		;;
	test-kernel)
		need qemu-system-x86_64 qemu-system-x86
		need /bin/busybox busybox-static
		need iptables iptables
		compgen -G '.cache/kernel/*' >/dev/null ||
			apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || lists=false
		;;
	bench-control | bench-failover) # what kube-proxy and the iptables dataplane run
		need nft nftables
		need iptables iptables
		need ip6tables-restore iptables
		;;
	bench-scenarios) # and the peers
		need nft nftables
		need iptables iptables
		need ip6tables-restore iptables
		need nginx nginx-light
		need /usr/lib/nginx/modules/ngx_stream_module.so libnginx-mod-stream
		need haproxy haproxy
		;;
	generate)
		need clang-19 clang-19
		need llvm-strip-19 llvm-19
		;;
	fmt)
		need clang-format-19 clang-format-19
		;;
	lint)
		need git git
		need gcc gcc
		need /usr/include/stdio.h libc6-dev
		need clang-format-19 clang-format-19
		need shellcheck shellcheck
		;;
	*)
		echo "hack/deps.sh: unknown target $target" >&2
		exit 2
		;;
	esac
done

mapfile -t wanted < <(printf '%s\n' "${wanted[@]}" | sort -u | grep . || true)
if [[ ${#wanted[@]} == 0 && $lists == true ]]; then
	exit 0
fi

install=(apt-get install -y --no-install-recommends "${wanted[@]}")
targets=$*
fail() { # REASON
	echo "error: make $targets lacks Debian packages, and $1. Type:" >&2
	echo "    sudo apt-get update && sudo ${install[*]}" >&2
	exit 1
}
command -v apt-get >/dev/null || fail "this machine has no apt-get"
[[ $(id -u) == 0 ]] || fail "only root can install them"

export DEBIAN_FRONTEND=noninteractive
echo "deps: $*: apt-get update" >&2
apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update </dev/null >&2 || fail "apt-get update failed"
if [[ ${#wanted[@]} -gt 0 ]]; then
	echo "deps: $*: ${install[*]}" >&2
	# Servers among them are not started: they would listen on this machine.
	policy=/usr/sbin/policy-rc.d
	if [[ ! -e $policy ]]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	"${install[@]}" -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 </dev/null >&2 || fail "apt-get install failed"
fi
