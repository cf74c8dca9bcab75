# SPDX-License-Identifier: Apache-2.0
# Needs Go and make. hack/deps.sh installs what else a target wants, as root on
# Debian; elsewhere it says what is missing.

VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT    ?= $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS   := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
EPOCH     ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
BENCHTIME ?= 1s
FUZZTIME  ?= 10s
TESTFLAGS ?=

# Programs that need root are built as you and run through sudo.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),-exec "sudo -E env PATH=$$PATH")

# What runs on Linux 6.1, the oldest kernel supported. Emulation is slow, so the
# contract is cut to two of its four halves.
KERNEL_RUN  = ^TestContract$$/^(TCP_over_IPv4|UDP_over_IPv6)$$/(reach|change)|^TestCounts$$|^TestFull$$|^TestKilledAtEveryWrite$$|^TestFragments$$|^TestSamePort|^TestRestart|^TestSCTP$$|^TestAffinityOf|^TestVIPMoves|^TestStaleUDP$$|^TestSocketsByFile$$/^TestStaleUDP$$|^TestClockJump$$|^TestUnansweredIsAvoided$$|^TestSuspicionIsNotInherited$$
KERNEL_TEST = go run ./test/kernel -timeout 25m -env LBPROXY_TEST_CLOCK=1

GOLANGCI := .cache/bin/golangci-lint

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build demo test test-unit test-monitoring test-deploy test-root test-switch test-kernel test-cluster fuzz image image-lock \
	release vulncheck bench bench-control bench-failover generate generate-check lint fmt clean need-root

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/lbproxy, or OUT
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $(or $(OUT),bin/lbproxy) ./cmd/lbproxy

demo: need-root build ## a cluster of network namespaces, balanced by lbproxy (root)
	@hack/deps.sh $@
	go run $(AS_ROOT) ./demo

test: test-unit test-monitoring test-deploy test-root test-kernel test-cluster ## every test

test-unit: ## tests that need no root, with the race detector
	@hack/deps.sh $@
	go test -race -short $(TESTFLAGS) ./...

test-monitoring: ## dashboard, alerts and runbook, by Prometheus' own parser and engine
	cd test/monitoring && go test $(TESTFLAGS) ./...

test-deploy: need-root ## the chart, the manifests, and the image as the DaemonSet runs it (root)
	@hack/deps.sh $@
	cd deploy && go test $(AS_ROOT) -tags root -count=1 $(TESTFLAGS) ./...

test-root: need-root ## all tests, long ones too, on this kernel (build tag root)
	@hack/deps.sh $@
	go test $(AS_ROOT) -tags root -count=1 -p 1 -timeout 30m $(TESTFLAGS) ./...

test-kernel: ## tests on Linux 6.1 in a virtual machine
	@hack/deps.sh $@
	LBPROXY_TEST_VM=1 go test -count=1 -timeout 20m ./test/kernel
	$(KERNEL_TEST) -run '$(KERNEL_RUN)' ./internal/dataplane/ebpf
	$(KERNEL_TEST) $$(hack/vm-iptables.sh) -run '^TestClockJump$$' ./internal/dataplane/iptables

test-switch: need-root ## switches dataplanes under load, TESTFLAGS=-count=10 for many times
	@hack/deps.sh test-root
	go test $(AS_ROOT) -tags root -count=1 -timeout 40m -run 'TestSwitchDataplanes|TestKilledSwitching' $(TESTFLAGS) ./test/trial

test-cluster: need-root ## tests against a real API server (root)
	@hack/deps.sh $@
	cd test/cluster && go test $(AS_ROOT) -tags root -count=1 -timeout 40m $(TESTFLAGS) ./...

image: build ## dist/: a container image as an OCI archive, and what is in it; no engine needed
	@mkdir -p dist
	cd deploy && go run ./image -version $(VERSION) -epoch $(EPOCH) -o ../dist/lbproxy.oci.tar $$(go env GOARCH)=../bin/lbproxy

image-lock: ## pin the image's Debian packages anew
	@hack/deps.sh $@
	cd deploy && go run ./image -lock

release: ## dist/: programs and images for amd64 and arm64, what is in them, the chart, checksums
	@hack/release.sh $(VERSION) $(EPOCH)

vulncheck: ## fail if lbproxy has code with a known vulnerability
	@hack/vulncheck.sh

fuzz: need-root ## every fuzz target for FUZZTIME (10s), on packets too (root)
	@hack/deps.sh $@
	@hack/fuzz.sh $(FUZZTIME)

bench: need-root build ## what lbproxy costs, as ratios in one table (root); BENCHTIME=1x: a quick look
	@hack/deps.sh $@
	go test -tags root -c -o bin/ebpf.test ./internal/dataplane/ebpf
	go run $(AS_ROOT) ./bench -benchtime $(BENCHTIME)

bench-control: need-root build ## the control plane at scale, beside a real kube-proxy (root); QUICK=1: a quick look
	@hack/deps.sh $@
	go run $(AS_ROOT) ./bench/control $(if $(QUICK),-quick)

bench-failover: need-root build ## what clients notice of backends that fail (root); QUICK=1: a quick look
	@hack/deps.sh $@
	go run $(AS_ROOT) ./bench/failover $(if $(QUICK),-quick)

generate: ## BPF objects and their Go types, the manifests of the chart
	@hack/deps.sh $@
	BPF2GO_CC=clang-19 BPF2GO_STRIP=llvm-strip-19 go generate ./...
	cd deploy && go run ./manifests
	@git ls-files -co --exclude-standard -- '*_bpfe[lb].go' | xargs -r gofmt -w

generate-check: ## fail if generate changes a file
	@hack/deps.sh generate
	@hack/generate-check.sh

lint: $(GOLANGCI) ## all linters
	@hack/deps.sh $@
	@hack/lint.sh $(GOLANGCI)

fmt: $(GOLANGCI) ## format Go and C
	@hack/deps.sh $@
	$(GOLANGCI) fmt ./...
	clang-format-19 -i $(wildcard bpf/*.c bpf/lib/*.h bpf/include/uapi.h bpf/include/base.h)

clean: ## remove what was built, but not what was downloaded
	rm -rf bin dist $(GOLANGCI)
	go clean -testcache

need-root:
	@[ "$$(id -u)" = 0 ] || command -v sudo >/dev/null || { \
		echo "error: this target needs root: become root or install sudo" >&2; exit 1; }

$(GOLANGCI): tools/go.mod tools/go.sum
	@echo "building golangci-lint; the first time takes minutes"
	cd tools && nice go build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
