# SPDX-License-Identifier: Apache-2.0
# For who builds images with an engine: docker build -t lbproxy .
# It is the image of make image, by the same program and from the same pinned
# packages, which needs no engine: deploy/README.md.
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY . .
ARG VERSION=dev
RUN make build VERSION=$VERSION
RUN cd deploy && go run ./image -dir /rootfs "$(go env GOARCH)=../bin/lbproxy"

FROM scratch
ARG VERSION=dev
COPY --from=build /rootfs/ /
ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin
LABEL org.opencontainers.image.title="lbproxy"
LABEL org.opencontainers.image.version="$VERSION"
LABEL org.opencontainers.image.source="https://github.com/lbproxy/lbproxy"
LABEL org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
WORKDIR /
ENTRYPOINT ["/usr/bin/lbproxy"]
