#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds what a release consists of into dist/: static programs and one image for
# amd64 and arm64, what each is made of (CycloneDX, SPDX), the Helm chart, the
# manifests, and the checksums of all. The same commit gives the same bytes.
# usage: hack/release.sh VERSION EPOCH
set -euo pipefail
cd "$(dirname "$0")/.."

version=$1 epoch=$2
export LC_ALL=C TZ=UTC
rm -rf dist
mkdir -p dist
programs=()
for arch in amd64 arm64; do
	echo "release: lbproxy $version for linux/$arch"
	GOOS=linux GOARCH=$arch "${MAKE:-make}" --no-print-directory build "VERSION=$version" "OUT=dist/lbproxy-linux-$arch"
	programs+=("$arch=../dist/lbproxy-linux-$arch")
done
(cd deploy && go run ./image -version "$version" -epoch "$epoch" -o ../dist/lbproxy.oci.tar "${programs[@]}")
cp deploy/daemonset.yaml dist/

# A chart's version has three numbers; that of a build between releases follows them.
number=${version#v}
[[ $number =~ ^[0-9]+\.[0-9]+\.[0-9]+ ]] || number=0.0.0-$number
mkdir dist/chart
cp -r deploy/chart/lbproxy dist/chart/
sed -i -E "s/^version: .*/version: $number/; s/^appVersion: .*/appVersion: \"$version\"/" dist/chart/lbproxy/Chart.yaml
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" --mode=u=rwX,go=rX \
	-C dist/chart -cf - lbproxy | gzip -n >"dist/lbproxy-chart-$number.tgz"
rm -rf dist/chart

(cd dist && sha256sum -- * >SHA256SUMS)
cat dist/SHA256SUMS
