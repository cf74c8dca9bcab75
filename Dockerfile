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
COPY --from=build /rootfs/ /
ENTRYPOINT ["/usr/bin/lbproxy"]
