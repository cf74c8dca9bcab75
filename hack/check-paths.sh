#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Fails if a file, text or binary, names a directory of the machine it was made
# on: BPF objects keep source paths in their debug information, people paste
# transcripts.
set -euo pipefail
cd "$(dirname "$0")/.."

found=$(git grep --untracked -aonE '(^|[^[:alnum:]._/-])/(work|root|home/[a-z]+)/[[:alnum:]._-]+' \
	-- ':!hack/check-paths.sh' ':!*go.sum' | cut -c 1-200 || true)
if [[ -n $found ]]; then
	echo "$found" >&2
	echo "these files name directories of one machine" >&2
	exit 1
fi
