// Package guestimages makes the guests that vmm boots when it is given none:
// a slim vanilla kernel built from Debian's source package, Debian's stock
// cloud kernel as it is, and an initial RAM disk with busybox and an init of
// our own.
//
// Everything is fetched by apt-get, which checks it, and kept in CacheDir. It
// is made once and again only when its recipe changes.
package guestimages
