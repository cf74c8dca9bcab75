#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Copies libbpf's headers from Debian's libbpf-dev. Run it after installing the
# version to move to; then regenerate the objects and read the diff.
set -euo pipefail
cd "$(dirname "$0")"

package=$(dpkg-query -W -f '${Version}' libbpf-dev) || {
	echo "update.sh: needs libbpf-dev: apt-get install -y --no-install-recommends libbpf-dev" >&2
	exit 1
}
upstream=${package#*:}
upstream=${upstream%-*}

for header in bpf_helpers.h bpf_helper_defs.h bpf_endian.h bpf_core_read.h; do
	install -m 644 "/usr/include/bpf/$header" "$header"
done
sed -i -E "s/libbpf [0-9.]+, unchanged from (.*)'s libbpf-dev [^ ]+/libbpf $upstream, unchanged from \1's libbpf-dev $package/" README.md
echo "bpf/include: libbpf-dev $package"
