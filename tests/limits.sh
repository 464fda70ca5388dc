# What holds of limits where systemd is process 1, for TestStockLimits: sh limits.sh USER says it of one of two users, root and user.
# Guests have a kernel that only halts.
start="vmm run -d --engine software --kernel /halt -m 64 --net none"
bounds="--cpu-limit 0.5 --memory-limit 256M --pids-limit 90"

say() { sed "s/^/SEEN $1 /"; }

# look NAME sets group, and says what is in it.
look() {
	group=$(vmm inspect "$1" | sed -n 's/.*"cgroup": "\(.*\)".*/\1/p')
	for file in cpu.max memory.max memory.swap.max pids.max io.max; do
		if [ -e "$group/$file" ]; then echo "$file $(cat "$group/$file")"; fi
	done
	echo "processes $(wc -l <"$group/cgroup.procs"), it is in $group"
}

# ended NAME waits for the end of a VM, and says how that was.
ended() {
	until vmm inspect "$1" | grep -q '"state": "exited"'; do sleep 1; done
	vmm inspect "$1" | sed -n 's/.*"detail": "\(.*\)".*/\1/p'
	if [ -d "$group" ]; then echo "left: $group"; fi
	vmm rm "$1" >/dev/null
}

scope="systemd-run --scope --quiet -p Delegate=yes"
io="--io-limit /:wbps=20M"
if [ "$1" = user ]; then scope="$scope --user" XDG_RUNTIME_DIR=/run/user/1000; fi
export XDG_RUNTIME_DIR
{
	$start --name plain --cpu-limit 1
	vmm doctor | grep -A 1 ^limits
	if [ "$1" = user ]; then
		$scope $start --name io $bounds $io
		$scope vmm doctor | grep -A 1 ^limits
		io=
	fi
	$scope $start --name bounded $bounds $io
	look bounded
	vmm kill bounded >/dev/null
	ended bounded
	$scope $start --name greedy --memory-limit 256M
	look greedy >/dev/null
	echo 1M >"$group/memory.max"
	ended greedy
} 2>&1 | say "$1"
