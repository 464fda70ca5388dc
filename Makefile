# make run    boots the default guest to a shell; ARGS='...' are further flags
# make setup  builds the default guest's own kernel, which boots faster (minutes)
# make test   runs every test; make test-stock the slow one with Debian's kernel
# make test-hardware [RUN=REGEX]  all that need KVM, on an emulated host with kvm-amd
# make test-hardware-intel [RUN=REGEX]  some of them, on one with kvm-intel
# make test-kernels  boots the kernels of four Debians
# make bench  compares with QEMU
# make fuzz   fuzzes every parser for FUZZTIME each, lets the hostile driver at the devices for HOSTILE times as long as make test,
#             and has the hostile guest attack for HOSTILE_ROUNDS rounds by each transport
# make lint   what make test begins with: gofmt, vet, staticcheck, govulncheck; make golangci has more linters
# make cover  tests' coverage, in coverage.out and coverage.html
# make release  a tar archive, deb, rpm, SBOM and checksums in dist/; make release-check makes it twice and compares
#
# Each of them makes what it lacks. As root, missing Debian packages are
# installed; else it says which.

export CGO_ENABLED ?= 0
export PATH := $(PATH):/usr/sbin:/sbin
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
GOLANGCI    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
NFPM        := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
CYCLONEDX   := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
FUZZTIME    ?= 30s
# What is interesting is made smaller in few tries only, for else that takes all of the time.
FUZZ        := -fuzztime $(FUZZTIME) -fuzzminimizetime 100x
HOSTILE     ?= 150
HOSTILE_ROUNDS ?= 10000
# The version is the repository's tag: in what git archive has packed, where there is no repository, it is in a
# file (.gitattributes). Without either the build says "untagged" itself.
VERSION     := $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null || \
	{ git describe --always --dirty --exclude '*' 2>/dev/null || sed -n 's/^v[0-9]/&/p' packaging/version; } | sed '/^v/!s/^/untagged-/')
# The same bytes wherever and whenever they are built; without HTTP/2, which goes over
# no control socket. tests/programs does it alike, but for the inlining.
GO_BUILD    := GOAMD64=v1 go build -trimpath -buildvcs=false -tags nethttpomithttp2
# Without symbols; functions begin at 16 bytes and not at 32, of which the half is air.
LDFLAGS     := -s -w -funcalign=16
# These packages are built without inlining, which makes the program 1 MB smaller: no exit, request
# or packet of a guest passes through them.
COLD        := net net/... crypto/... encoding/json encoding/xml encoding/asn1 encoding/pem encoding/base64 text/... fmt mime/... log/... vendor/... \
	golang.org/x/net/... golang.org/x/text/... golang.org/x/term golang.org/x/crypto/... \
	github.com/spf13/... github.com/BurntSushi/... github.com/insomniacslk/... github.com/google/... github.com/docker/... github.com/sirupsen/... github.com/opencontainers/... github.com/compose-spec/... github.com/santhosh-tekuri/... github.com/go-viper/... github.com/distribution/... \
	github.com/mattn/... github.com/xhit/... github.com/dustin/... github.com/u-root/... github.com/landlock-lsm/... kernel.org/... \
	go.yaml.in/... regexp/syntax math/big archive/... path/... encoding/csv flag \
	vmm/internal/cli vmm/internal/compose vmm/internal/cgroup vmm/internal/jail vmm/internal/tomlfile vmm/vm/... vmm/bootloader/... vmm/guest-images/... vmm/kerneltest/... \
	vmm/storage/oci vmm/storage/volume vmm/machine/acpi vmm/machine/gdb
SOURCES     := $(shell find */ -name '*.go' -o -name '*.s' -o -name kernel.config -o -name dhcp.sh) go.mod go.sum

.PHONY: run setup tools hardware-tools intel-tools test test-stock test-kernels test-hardware test-hardware-intel lint vulncheck golangci \
	unit e2e smoke cover bench bench-hardware fuzz release packages release-check clean

# What the tests compare with and look at disks with, as program:package.
TOOLS := mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs vgcreate:lvm2 mdadm:mdadm ip:iproute2 ping:iputils-ping curl:curl python3:python3 tshark:tshark passt:passt \
	qemu-img:qemu-utils mke2fs:e2fsprogs sfdisk:fdisk mksquashfs:squashfs-tools mkfs.erofs:erofs-utils mkfs.vfat:dosfstools mcopy:mtools \
	fio:fio gdb:gdb git:git docker-registry:docker-registry skopeo:skopeo umoci:umoci podman:podman
# The same for make bench and make test-stock.
BENCH_TOOLS := iperf3:iperf3 qemu-system-x86_64:qemu-system-x86 qemu-storage-daemon:qemu-system-common
STOCK_TOOLS := debootstrap:debootstrap objcopy:binutils depmod:kmod
# What the emulated host is built with and runs on.
HOST_TOOLS := mmdebstrap:mmdebstrap depmod:kmod
HARDWARE_TOOLS := qemu-system-x86_64:qemu-system-x86 $(HOST_TOOLS)
INTEL_TOOLS := bochs:bochs+bochs-term+bochsbios+vgabios syslinux:syslinux mcopy:mtools $(HOST_TOOLS)

# $(call need,LIST) installs what is missing of a list, or says what to install. A program can be of several packages: a+b.
need = @missing=; for t in $(1); do command -v $${t%%:*} >/dev/null || missing="$$missing $$(echo $${t\#*:} | tr + ' ')"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	if [ $$(id -u) = 0 ]; then apt-get update -q >/dev/null; DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing >/dev/null; \
	else echo "as root: apt-get install$$missing"; exit 1; fi; fi

# The default guest's init, which vmm carries packed.
INIT := guest-images/embedded/init.zst
$(INIT): $(SOURCES)
	$(GO_BUILD) -ldflags '$(LDFLAGS)' -o $(INIT:.zst=) ./guest-images/init
	go run ./guest-images/pack $(INIT:.zst=) $@

# Dependencies without what they would do at each start.
PATCHED := .patched/go.mod
$(PATCHED): go.mod go.sum $(wildcard packaging/patched/*)
	go run ./packaging/patched >/dev/null

vmm: $(SOURCES) $(INIT) $(PATCHED)
	$(GO_BUILD) -modfile $(PATCHED) $(COLD:%=-gcflags=%=-l) -ldflags '$(LDFLAGS) -X vmm/internal/version.tag=$(VERSION)' -o $@ ./cmd/vmm

run: vmm
	./vmm run $(ARGS)

setup: vmm
	./vmm setup

tools:
	$(call need,$(TOOLS))

hardware-tools:
	$(call need,$(HARDWARE_TOOLS))

intel-tools:
	$(call need,$(INTEL_TOOLS))

test: setup tools lint unit e2e smoke

lint: $(INIT)
	@out=$$(gofmt -l */); if [ -n "$$out" ]; then echo "gofmt: $$out"; exit 1; fi
	go vet ./...
	go run $(STATICCHECK) ./...
	@$(MAKE) --no-print-directory vulncheck

# The vulnerabilities are asked for over the network. Where that is not to be had, nothing is wrong with vmm.
vulncheck: $(INIT)
	@echo "govulncheck ./..."; out=$$(go run $(GOVULNCHECK) ./... 2>&1) && exit; echo "$$out"; \
	case $$out in *"govulncheck: fetching vulnerabilities: "*) echo "govulncheck: NOT CHECKED: the vulnerability database cannot be reached from here";; *) exit 1;; esac

# Its first build takes minutes, so it is not in make test.
golangci: $(INIT)
	go run $(GOLANGCI) run

# The race detector needs cgo, so gcc; vmm setup has installed it.
# The examples boot guests: with the detector, ten times as long where their kernel mode is interpreted.
# Of the dependencies that vmm is built with changed, two are tested so.
unit: setup tools
	CGO_ENABLED=1 go test -race -timeout 20m -skip '^Example' $$(go list ./... | grep -v '^vmm/tests')
	go test -timeout 20m -run '^Example' ./vm ./kerneltest
	go test -modfile $(PATCHED) ./internal/compose ./network/gateway

e2e: setup tools
	go test -timeout 40m -v ./tests/...

# Of the unit tests; what the end-to-end tests run is not counted.
cover: setup tools
	go test -timeout 20m -coverpkg ./... -coverprofile coverage.out $$(go list ./... | grep -v '^vmm/tests')
	go tool cover -html coverage.out -o coverage.html
	go tool cover -func coverage.out | tail -1

# The tests that need KVM, where there is none: some of them, and all.
smoke: setup hardware-tools
	go run ./tests/hardware -smoke

test-hardware: setup hardware-tools
	go run ./tests/hardware -run '$(RUN)'

test-hardware-intel: setup intel-tools
	go run ./tests/hardware -emulator bochs -run '$(RUN)'

test-stock: vmm tools
	$(call need,$(STOCK_TOOLS))
	./vmm setup --stock
	VMM_TEST_STOCK=1 go test -timeout 3h -v -run Stock ./tests
	VMM_TEST_STOCK=1 go test -timeout 1h -v -run LockstepBoot ./machine/ring0
	VMM_TEST_ROUNDS=50 go test -timeout 60m -v -run 'SnapshotRounds|Clones' ./tests
	VMM_TEST_ROUNDS=20 go test -timeout 30m -v -run 'Migration$$' ./tests
	VMM_TEST_CRASHES=200 go test -timeout 30m -v -run Crash ./storage/image

test-kernels: vmm
ifneq ($(wildcard /dev/kvm),)
	VMM_TEST_KERNELS=1 go test -timeout 90m -v -count 1 -run DebianKernels ./tests
else
	$(call need,$(HARDWARE_TOOLS))
	go run ./tests/hardware -kernels
endif

bench: setup tools
	$(call need,$(BENCH_TOOLS))
	go test -timeout 30m -run '^$$' -bench . -benchmem ./machine/... ./devices ./virtio/net ./internal/jail
	go test -timeout 30m -v -run Compare -count 1 ./tests/bench -compare

# The same beside QEMU on the emulated host: exits, which are exact, and times, which are not.
bench-hardware: setup hardware-tools
	go run ./tests/hardware -bench

# Every target that there is, in the order of their files.
fuzz: setup
	@grep -ro --include='*_test.go' '^func Fuzz[[:alnum:]]*' */ | sort | while IFS=: read -r file target; do \
		target="$${target#func }"; package="./$${file%/*}"; echo "$$package $$target"; \
		go test -run '^$$' -fuzz "^$$target$$" $(FUZZ) "$$package" </dev/null || exit; done
	VMM_TEST_HOSTILE=$(HOSTILE) CGO_ENABLED=1 go test -race -timeout 0 -count 1 -v -run 'Hostile$$' ./virtio
	VMM_TEST_HOSTILE=$(HOSTILE_ROUNDS) go test -timeout 0 -count 1 -v -run HostileGuest ./tests

# Both are built anew: their version may be another one.
release:
	$(MAKE) --always-make vmm
	$(MAKE) packages

packages:
	NFPM=$(NFPM) CYCLONEDX=$(CYCLONEDX) packaging/release.sh $(VERSION)

release-check:
	packaging/check.sh

clean:
	rm -rf vmm $(INIT) $(INIT:.zst=) .patched dist coverage.out coverage.html
