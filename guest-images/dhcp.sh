#!/bin/sh
# udhcpc calls this with the event's name, and what it was told as variables.
# The first interface comes first in resolv.conf, and the first that has a
# router has the default route.
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ifconfig "$interface" "$ip" netmask "$subnet" mtu "${mtu:-1500}"
for r in $router; do
	route add default gw "$r" dev "$interface" metric "${interface#eth}" 2>/dev/null
	break
done
[ -z "$dns" ] || {
	[ -z "$search$domain" ] || echo "search ${search:-$domain}"
	[ -z "$opt224" ] || echo "options ndots:$((0x$opt224))"
	for d in $dns; do echo "nameserver $d"; done
} >"/run/resolv.$interface"
# Another interface's script may do the same at the same time: whoever is last sees
# what the other has written.
until cat /run/resolv.* >/etc/resolv.conf && [ "$(cat /run/resolv.*)" = "$(cat /etc/resolv.conf)" ]; do :; done
