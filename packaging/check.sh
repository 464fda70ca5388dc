#!/bin/sh
# Makes the release of HEAD twice, and compares: in two directories, vmm with a build cache of its own for
# each, and with another time zone, language and umask the second time.
set -eu
cd "$(dirname "$0")/.."
commit=$(git rev-parse HEAD)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM HUP
build() (
	git clone -q . "$dir/$1"
	cd "$dir/$1"
	git checkout -q "$commit"
	GOCACHE=$dir/cache make --always-make vmm
	rm -rf "$dir/cache"
	make packages
)
build one
(umask 077; TZ=Asia/Tokyo LC_ALL=C.UTF-8 build two/deeper)
diff -r "$dir/one/dist" "$dir/two/deeper/dist"
echo "the same bytes twice:"
cat "$dir/one/dist/SHA256SUMS"
