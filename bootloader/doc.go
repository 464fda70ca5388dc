// Package bootloader puts a Linux kernel, its initial RAM disks and its
// command line into guest memory and says in which state a vCPU enters it.
//
// It knows three boot protocols: the 64-bit entry of a bzImage or of an
// unpacked kernel (Linux Documentation/arch/x86/boot.rst, "64-bit boot
// protocol"), and PVH (xen.git docs/misc/pvh.pandoc). It only loads: what the
// guest's platform looks like comes in through Params.
package bootloader
