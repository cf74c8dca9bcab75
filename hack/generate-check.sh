#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Fails if `make generate` changes, adds or removes any file: what is committed
# must be what the sources produce, byte for byte.
set -euo pipefail
cd "$(dirname "$0")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

snapshot() {
	git ls-files -co --exclude-standard -z | sort -zu | while IFS= read -r -d '' file; do
		if [[ -f $file ]]; then sha256sum "$file"; fi
	done
}

snapshot >"$tmp/before"
"${MAKE:-make}" --no-print-directory generate
snapshot >"$tmp/after"
if ! diff "$tmp/before" "$tmp/after" >"$tmp/diff"; then
	sed -nE 's/^[<>] [0-9a-f]+  //p' "$tmp/diff" | sort -u >&2
	git --no-pager diff --stat >&2
	echo "make generate changed these files: commit its result with the source" >&2
	exit 1
fi

# A generated file that git ignores would be missing from a clone.
ignored=$(git ls-files -oi --exclude-standard -- '*_bpfe[lb].*')
if [[ -n $ignored ]]; then
	printf 'ignored by git: %s\n' "$ignored" >&2
	exit 1
fi
