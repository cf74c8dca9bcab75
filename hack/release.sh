#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds what a release consists of into dist/: static programs and one image for the
# architectures, what each is made of (CycloneDX, SPDX), the Helm chart, the
# manifests, and the checksums of all. The same commit gives the same bytes.
# usage: hack/release.sh VERSION EPOCH ARCHITECTURE...
set -euo pipefail
cd "$(dirname "$0")/.."

version=$1 epoch=$2
shift 2
export LC_ALL=C TZ=UTC
rm -rf dist
mkdir -p dist
programs=()
for arch; do
	echo "release: lbproxy $version for linux/$arch"
	GOOS=linux GOARCH=$arch "${MAKE:-make}" --no-print-directory build "VERSION=$version" "OUT=dist/lbproxy-linux-$arch"
	programs+=("$arch=../dist/lbproxy-linux-$arch")
done
(cd deploy && go run ./image -version "$version" -epoch "$epoch" -o ../dist/lbproxy.oci.tar "${programs[@]}")

# The manifests name the image of the version that the chart was committed with.
committed=$(sed -nE 's/^appVersion: "(.*)"$/\1/p' deploy/chart/lbproxy/Chart.yaml)
sed -E "s|(image: lbproxy:)${committed//./\\.}\$|\1$version|; s|(version: )\"${committed//./\\.}\"\$|\1\"$version\"|" \
	deploy/daemonset.yaml >dist/daemonset.yaml
if ! grep -qF "image: lbproxy:$version" dist/daemonset.yaml; then
	echo "release: deploy/daemonset.yaml does not name the image lbproxy:$committed" >&2
	exit 1
fi

# A chart's version has three numbers; that of a build between releases follows them.
number=${version#v}
[[ $number =~ ^[0-9]+\.[0-9]+\.[0-9]+ ]] || number=0.0.0-g$number # a number of a version begins with no 0
mkdir dist/chart
cp -r deploy/chart/lbproxy dist/chart/
sed -i -E "s/^version: .*/version: $number/; s/^appVersion: .*/appVersion: \"$version\"/" dist/chart/lbproxy/Chart.yaml
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" --mode=u=rwX,go=rX \
	-C dist/chart -cf - lbproxy | gzip -n >"dist/lbproxy-chart-$number.tgz"
rm -rf dist/chart

(cd dist && sha256sum -- * >SHA256SUMS)
cat dist/SHA256SUMS
