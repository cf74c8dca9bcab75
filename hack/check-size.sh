#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Fails for a Go or C file of more than 500 lines. Generated files and the
# vendored headers of bpf/include do not count.
set -euo pipefail
cd "$(dirname "$0")/.."

limit=500
status=0
while IFS= read -r -d '' file; do
	[[ -f $file ]] || continue # deleted, not yet committed
	head -n 5 "$file" | grep -q '^// Code generated .* DO NOT EDIT\.$' && continue
	lines=$(wc -l <"$file")
	if ((lines > limit)); then
		echo "$file: $lines lines, at most $limit: split it by subject" >&2
		status=1
	fi
done < <(git ls-files -co --exclude-standard -z -- '*.go' '*.c' '*.h' ':!bpf/include/')
exit "$status"
