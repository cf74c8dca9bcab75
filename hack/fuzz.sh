#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of the module for a while, one after the other.
# usage: hack/fuzz.sh DURATION
set -euo pipefail
cd "$(dirname "$0")/.."

duration=$1
count=0
while IFS=: read -r file _ target; do
	package=./$(dirname "$file")
	echo "fuzz: $package $target for $duration"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$duration" "$package"
	count=$((count + 1))
done < <(git grep --untracked -noE '^func Fuzz[A-Za-z0-9_]*' -- '*_test.go' | sed 's/func //' | sort)

echo "fuzz: $count targets"
if ((count == 0)); then
	echo "fuzz: found no target" >&2
	exit 1
fi
