#!/bin/sh
# Makes a release of ./vmm in dist/: a tar archive, a deb, an rpm, an SBOM and their checksums.
# The same commit and Go give the same bytes; check.sh holds it to that. make release calls it with
# the version, as git describe says it.
set -eu
cd "$(dirname "$0")/.."
version=$1
# As deb and rpm sort versions: v0.2.0-rc1 before v0.2.0 before v0.2.0-3-gabc1234.
PACKAGE_VERSION=$(echo "$version" | sed -e 's/^untagged-/0~/' -e 's/^v//' -e 's/-\([0-9]*\)-g/+\1.g/' -e 's/-dirty/+dirty/' -e 's/-/~/' -e 's/-/./g')
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export PACKAGE_VERSION SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C
umask 022

rm -rf dist
share=dist/tree/usr/share doc=dist/tree/usr/share/doc/vmm
mkdir -p dist/tree/usr/bin $doc/docs $share/bash-completion/completions $share/zsh/vendor-completions $share/fish/vendor_completions.d
install -m 755 vmm dist/tree/usr/bin/vmm
install -m 644 README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md $doc
install -m 644 docs/* $doc/docs
install -m 644 LICENSE $doc/copyright

# Most licences of what is linked in want to be handed on with the binary.
go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/vmm ./guest-images/init | sort -u |
	while read -r module release dir; do
		texts=$(find "$dir" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \) | sort)
		[ -n "$texts" ] || { echo "$module has no licence" >&2; exit 1; }
		for text in $texts; do
			printf '==== %s %s: %s\n\n' "$module" "$release" "$(basename "$text")"
			cat "$text"
		done
	done > $doc/third-party-licenses

./vmm completion bash > $share/bash-completion/completions/vmm
./vmm completion zsh > $share/zsh/vendor-completions/_vmm
./vmm completion fish > $share/fish/vendor_completions.d/vmm.fish
go run ./internal/manpages $share/man/man1
gzip -9n $share/man/man1/*
chmod -R u=rwX,go=rX dist/tree
find dist/tree -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

tar -C dist/tree/usr --sort=name --owner=0 --group=0 --numeric-owner --format=gnu --transform "s,^\.,vmm-$PACKAGE_VERSION," -c . |
	gzip -9n > "dist/vmm-$PACKAGE_VERSION-linux-amd64.tar.gz"
for packager in deb rpm; do
	go run "$NFPM" package --config packaging/nfpm.yaml --packager $packager --target dist
done
# The SBOM has its tool's checksum, which -trimpath makes the same everywhere.
sbom=dist/vmm-$PACKAGE_VERSION.cdx.json
go run -trimpath "$CYCLONEDX" bin -json -std -noserial -notimestamp -version "$version" -output "$sbom" ./vmm
# It calls the changed copies of modules (packaging/patched) by their directories: who looks for
# vulnerabilities knows the modules.
go version -m ./vmm | awk '$1 == "dep" {module = $2; release = $3} $1 == "=>" {print module, release, $2}' |
	while read -r module release copy; do
		sed -i -e "s,$copy@(devel),$module@$release,g" -e "\\,\"name\": \"$copy\",{s,$copy,$module,;n;s,(devel),$release,}" "$sbom"
	done
if grep -F .patched/ "$sbom"; then
	echo "$sbom names copies of modules" >&2
	exit 1
fi
rm -rf dist/tree
cd dist
sha256sum vmm* > SHA256SUMS
