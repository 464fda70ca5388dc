// Command init is PID 1 of vmm's default guest, as small as it can be: the guest
// keeps it in memory.
package main

import "vmm/guest-images/guestinit"

func main() { guestinit.Main() }
