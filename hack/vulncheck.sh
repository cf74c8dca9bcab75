#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Fails if lbproxy has code of a module with a known vulnerability, and tells those of
# Go's own. The database is the Go
# module golang.org/x/vulndb at the version below, which is as old as it says;
# GOVULNDB=https://vuln.go.dev asks for what is known now.
set -euo pipefail
cd "$(dirname "$0")/.."

database=v0.0.0-20261105234957-e22db6528018
dir=$PWD/.cache/vulndb/$database
if [[ -z ${GOVULNDB:-} && ! -e $dir/index/modules.json ]]; then
	module=$(go mod download -json "golang.org/x/vulndb@$database" | sed -nE 's/^\t"Dir": "(.*)",$/\1/p')
	(cd tools/vulncheck && go run . database "$module/data/osv" "$dir.part")
	mv "$dir.part" "$dir"
fi
(cd tools/vulncheck && go test . && go build -o ../../.cache/bin/vulncheck . && go build -o ../../.cache/bin/govulncheck golang.org/x/vuln/cmd/govulncheck)
# With its symbols: without them every function of a package counts.
program=.cache/bin/lbproxy-symbols
CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$program" ./cmd/lbproxy
.cache/bin/govulncheck -db "${GOVULNDB:-file://$dir}" -mode binary -format json "$program" | .cache/bin/vulncheck judge
