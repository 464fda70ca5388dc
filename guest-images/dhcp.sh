#!/bin/sh
# udhcpc calls this with the event's name, and what it was told as variables.
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ifconfig "$interface" "$ip" netmask "$subnet" mtu "${mtu:-1500}"
for r in $router; do
	route add default gw "$r" dev "$interface" 2>/dev/null
	break
done
[ -z "$dns" ] || {
	[ -z "$domain" ] || echo "search $domain"
	for d in $dns; do echo "nameserver $d"; done
} >/etc/resolv.conf
