// Package house has no code: its test holds the packages to the layout that
// docs/architecture.md describes.
package house
