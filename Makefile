# make run    boots the default guest to a shell
# make test   runs every test; make test-stock the slow one with Debian's kernel
# make bench  compares with QEMU
# make fuzz   fuzzes every parser for FUZZTIME each
#
# Each of them makes what it lacks. As root, missing Debian packages are
# installed; else it says which.

export CGO_ENABLED ?= 0
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 30s
SOURCES     := $(shell find . -name '*.go' -o -name '*.s' -o -name kernel.config) go.mod go.sum

.PHONY: run setup test test-stock lint unit e2e bench fuzz clean

vmm: $(SOURCES)
	go build -trimpath -ldflags '-s -w' -o $@ ./cmd/vmm

run: vmm
	./vmm run

setup: vmm
	./vmm setup

test: setup lint unit e2e

lint:
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "gofmt: $$out"; exit 1; fi
	go vet ./...
	go run $(STATICCHECK) ./...

# The race detector needs cgo, so gcc; vmm setup has installed it.
unit: setup
	CGO_ENABLED=1 go test -race -timeout 20m $$(go list ./... | grep -v '^vmm/tests')

e2e: setup
	go test -timeout 40m -v ./tests/...

test-stock: vmm
	./vmm setup --stock
	VMM_TEST_STOCK=1 go test -timeout 60m -v -run Stock ./tests

bench: setup
	@command -v qemu-system-x86_64 >/dev/null || apt-get install -y -q --no-install-recommends qemu-system-x86 || \
		echo 'the comparisons need qemu-system-x86: install it as root'
	go test -timeout 30m -run '^$$' -bench . -benchmem ./machine/... ./devices
	go test -timeout 30m -v -run Compare -count 1 ./tests/bench -compare

fuzz:
	go test -run '^$$' -fuzz FuzzParse -fuzztime $(FUZZTIME) ./bootloader
	go test -run '^$$' -fuzz FuzzUnpack -fuzztime $(FUZZTIME) ./bootloader
	go test -run '^$$' -fuzz FuzzUART -fuzztime $(FUZZTIME) ./devices
	go test -run '^$$' -fuzz FuzzDecode -fuzztime $(FUZZTIME) ./machine/ring0
	go test -run '^$$' -fuzz FuzzExecute -fuzztime $(FUZZTIME) ./machine/ring0

clean:
	rm -f vmm
