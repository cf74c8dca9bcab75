# SPDX-License-Identifier: Apache-2.0
# Needs Go and make. hack/deps.sh installs what else a target wants, as root on
# Debian; elsewhere it says what is missing.

VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT    ?= $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS   := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
EPOCH     ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
BENCHTIME ?= 1s
FUZZTIME  ?= 10s
ARCHES    ?= amd64 arm64
TESTFLAGS ?=
FOCUS     ?= \[sig-network\] Services should
DURATION  ?= 1h

# Programs that need root are built as you and run through sudo.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),-exec "sudo -E env PATH=$$PATH")
# Scripts that need root.
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo -E env PATH=$$PATH)

# What runs on Linux 6.1, the oldest kernel supported. Emulation is slow, so the
# contract is cut to two of its four halves.
KERNEL_RUN  = ^TestContract$$/^(TCP_over_IPv4|UDP_over_IPv6)$$/(reach|change)|^TestCounts$$|^TestFull$$|^TestKilledAtEveryWrite$$|^TestFragments$$|^TestSamePort|^TestRestart|^TestSCTP$$|^TestAffinityOf|^TestVIPMoves|^TestStaleUDP$$|^TestSocketsByFile$$/^TestStaleUDP$$|^TestClockJump$$|^TestUnansweredIsAvoided$$|^TestSuspicionIsNotInherited$$
KERNEL_TEST = go run ./test/kernel -timeout 25m -env LBPROXY_TEST_CLOCK=1

GOLANGCI := .cache/bin/golangci-lint

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build demo test test-unit test-monitoring test-deploy test-root test-switch test-kernel test-cluster \
	cluster-up cluster-down e2e e2e-full e2e-ci e2e-restart e2e-soak e2e-table fuzz image image-lock release vulncheck \
	bench bench-scenarios bench-control bench-failover generate generate-check lint fmt clean need-root

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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
	go test $(AS_ROOT) -tags root -count=1 -p 1 -timeout 60m $(TESTFLAGS) ./...

test-kernel: ## tests on Linux 6.1 in a virtual machine
	@hack/deps.sh $@
	LBPROXY_TEST_VM=1 go test -count=1 -timeout 20m ./test/kernel
	$(KERNEL_TEST) -run '$(KERNEL_RUN)' ./internal/dataplane/ebpf

test-switch: need-root ## switches dataplanes under load, TESTFLAGS=-count=10 for many times
	@hack/deps.sh test-root
	go test $(AS_ROOT) -tags root -count=1 -timeout 40m -run 'TestSwitchDataplanes|TestKilledSwitching' $(TESTFLAGS) ./test/trial

test-cluster: need-root ## tests against a real API server (root)
	@hack/deps.sh $@
	cd test/cluster && go test $(AS_ROOT) -tags root -count=1 -timeout 40m $(TESTFLAGS) ./...

cluster-up: need-root image ## a Kubernetes cluster in namespaces (root); PROXY=lbproxy-iptables, kube-proxy-nftables, ...
	@hack/deps.sh $@
	$(SUDO) test/e2e/build.sh && $(SUDO) test/e2e/images.sh && $(SUDO) test/e2e/up.sh

cluster-down: need-root ## removes that cluster
	$(SUDO) test/e2e/down.sh

e2e: need-root ## Kubernetes' own tests in that cluster: FOCUS='Services should', SKIP=...
	$(SUDO) test/e2e/run.sh '$(FOCUS)' '$(SKIP)'

e2e-full: need-root image ## every one of these tests that a service proxy can pass; an hour for each PROXY
	@hack/deps.sh cluster-up
	$(SUDO) test/e2e/build.sh && $(SUDO) test/e2e/images.sh && $(SUDO) test/e2e/full.sh

e2e-ci: cluster-up ## that cluster up, the conformance tests of Services, and down again
	@trap '$(SUDO) test/e2e/down.sh' EXIT; $(SUDO) test/e2e/run.sh '\[sig-network\] Services should.*\[Conformance\]'

e2e-restart: need-root ## replaces lbproxy's pods in that cluster under load: no connection notices
	$(SUDO) test/e2e/restart.sh

e2e-soak: need-root ## DURATION=1h of changes in that cluster under load
	$(SUDO) test/e2e/soak.sh $(DURATION)

e2e-table: ## docs/CONFORMANCE.md from test/e2e/results
	go run ./test/e2e/report table test/e2e/results >docs/CONFORMANCE.md.part
	mv docs/CONFORMANCE.md.part docs/CONFORMANCE.md

image: build ## dist/: a container image as an OCI archive, and what is in it; no engine needed
	@mkdir -p dist
	cd deploy && go run ./image -version $(VERSION) -epoch $(EPOCH) -o ../dist/lbproxy.oci.tar $$(go env GOARCH)=../bin/lbproxy

image-lock: ## pin the image's Debian packages anew
	@hack/deps.sh $@
	cd deploy && go run ./image -lock

release: ## dist/: programs and an image for ARCHES (amd64 arm64), what is in them, the chart, checksums
	@hack/release.sh $(VERSION) $(EPOCH) $(ARCHES)

vulncheck: ## fail if lbproxy has code with a known vulnerability
	@hack/vulncheck.sh

fuzz: need-root ## every fuzz target for FUZZTIME (10s), on packets too (root)
	@hack/deps.sh $@
	@hack/fuzz.sh $(FUZZTIME)

bench: need-root build ## what lbproxy costs, as ratios in one table (root); BENCHTIME=1x: a quick look
	@hack/deps.sh $@
	go test -tags root -c -o bin/ebpf.test ./internal/dataplane/ebpf
	go test -tags root -c -o bin/pick.test ./internal/algo/picktest
	go run $(AS_ROOT) ./bench -benchtime $(BENCHTIME)

bench-scenarios: need-root build ## scenarios with other proxies beside, their numbers and a page in bench/out (root); QUICK=1: under 5 minutes, a smoke test
	@hack/deps.sh $@
	go run $(AS_ROOT) ./bench -set $(if $(QUICK),quick,full)
	go run ./bench -report bench/out/scenarios.json -html bench/out/scenarios.html

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
