#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of the module for a while, one after the other; some need root.
# usage: hack/fuzz.sh DURATION
set -euo pipefail
cd "$(dirname "$0")/.."

duration=$1
count=0
while IFS=: read -r file _ target; do
	package=./$(dirname "$file")
	tags=()
	if grep -q '^//go:build root$' "$file"; then # those run in the kernel
		tags=(-tags root)
		[[ $(id -u) == 0 ]] || tags+=(-exec "sudo -E env PATH=$PATH")
	fi
	echo "fuzz: $package $target for $duration"
	go test "${tags[@]}" -run '^$' -fuzz "^$target\$" -fuzztime "$duration" "$package"
	count=$((count + 1))
done < <(git grep --untracked -noE '^func Fuzz[A-Za-z0-9_]*' -- '*_test.go' | sed 's/func //' | sort)

echo "fuzz: $count targets"
if ((count == 0)); then
	echo "fuzz: found no target" >&2
	exit 1
fi
