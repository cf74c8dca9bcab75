#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs every linter over the whole tree and reports all failures, not only the
# first. usage: hack/lint.sh GOLANGCI_LINT
# shellcheck disable=SC2317 # check calls the functions
set -euo pipefail
cd "$(dirname "$0")/.."

golangci=$(realpath "$1")
status=0
check() { # NAME COMMAND...
	local name=$1
	shift
	if "$@"; then
		echo "ok    $name"
	else
		echo "FAIL  $name"
		status=1
	fi
}

# sources GLOB...: files that are committed or could be.
sources() {
	git ls-files -co --exclude-standard -- "$@" | sort -u |
		while IFS= read -r file; do if [[ -f $file ]]; then echo "$file"; fi; done
}

golangci_in() { # DIRECTORY
	(cd "$1" && "$golangci" run --config "$OLDPWD/.golangci.yaml" ./...)
}

format_go() {
	local out
	out=$(sources '*.go' | xargs -r gofmt -l)
	[[ -z $out ]] || { echo "not gofmt: $out" >&2 && return 1; }
}

format_c() {
	sources 'bpf/*.c' 'bpf/lib/*.h' 'bpf/include/uapi.h' 'bpf/include/base.h' 'internal/*.bpf.c' 'internal/*.bpf.h' |
		xargs -r clang-format-19 --dry-run -Werror
}

scripts() { # not busybox: its shell is one that shellcheck does not know
	local file
	sources | while IFS= read -r file; do
		if head -n 1 "$file" | grep -qaE "^#!(/usr)?/bin/(env )?(ba)?sh\b"; then
			echo "$file"
		fi
	done | xargs -r shellcheck
}

check gofmt format_go
check golangci-lint golangci_in .
check golangci-lint:test/cluster golangci_in test/cluster
check golangci-lint:deploy golangci_in deploy
check golangci-lint:test/monitoring golangci_in test/monitoring
check golangci-lint:tools/vulncheck golangci_in tools/vulncheck
check clang-format format_c
check bpf/include/uapi.h bpf/include/check.sh
check shellcheck scripts
check file-size hack/check-size.sh
check machine-paths hack/check-paths.sh
exit "$status"
