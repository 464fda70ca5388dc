# What the guest does that reads a disk's file systems for the host: see foreign.go.
disk=/dev/vda

# id DEVICE OFFSET and text DEVICE OFFSET SIZE read a UUID and a string of a superblock; busybox
# need not have blkid.
id() {
	dd if="$1" bs=1 skip="$2" count=16 2>/dev/null | od -A n -v -t x1 | tr -d ' \n' |
		sed 's/^\(.\{8\}\)\(.\{4\}\)\(.\{4\}\)\(.\{4\}\)/\1-\2-\3-\4-/'
}
text() { dd if="$1" bs=1 skip="$2" count="$3" 2>/dev/null | tr '\000' '\n' | head -n 1; }

# Of the arrays of md there are lines: DEVICE MEMBER,MEMBER... UUID NAME.
arrays=/run/arrays

# array DEVICE tells which array a device of md is, or a partition of one: UUID NAME.
array() {
	name=${1##*/}
	while read -r md members id; do
		[ "$md" != "${name%p*}" ] || printf %s "$id"
	done <$arrays
}

# members NAME tells the members of an array.
members() {
	while read -r md members id; do
		[ "$md" != "$1" ] || echo "$members" | tr , ' '
	done <$arrays
}

# member NAME reports whether a device is a member of an array, or was.
member() {
	while read -r md members id; do
		case ,$members, in
		*,"$1",*) return 0 ;;
		esac
	done <$arrays
	return 1
}

# described DIRECTORY PARTITION KIND SUBVOLUME DEVICE tells of a mounted file system: these,
# its array, and its UUID and label.
described() {
	uuid='' label=''
	case $3 in
	xfs) uuid=$(id "$5" 32) label=$(text "$5" 108 12) ;;
	btrfs) uuid=$(id "$5" 65568) label=$(text "$5" 65835 256) ;;
	ext4) uuid=$(id "$5" 1128) label=$(text "$5" 1144 16) ;;
	f2fs) uuid=$(id "$5" 1132) ;;
	esac
	printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "$5" "$(array "$5")" "$uuid" "$label"
}

# try mounts DEVICE at DIR as KIND with OPTIONS; nothing is written, and no log replayed.
try() { mkdir -p "$2" && mount -t "$3" -o "ro,$4" "$1" "$2" 2>/dev/null; }

# mounted DEVICE NAME PARTITION mounts what a device has.
mounted() {
	for kind in xfs:norecovery btrfs:rescue=nologreplay f2fs:norecovery iso9660:norock squashfs:ro ext4:noload vfat:ro; do
		try "$1" "/disk/$2" "${kind%%:*}" "${kind#*:}" || continue
		described "/disk/$2" "$3" "${kind%%:*}" "" "$1"
		[ "${kind%%:*}" != btrfs ] || subvolumes "$@"
		return
	done
}

# subvolumes mounts those of btrfs that may be a root: what is mounted is only the default one.
subvolumes() {
	try "$1" "/disk/$2.top" btrfs subvolid=5 || return
	described "/disk/$2.top" "$3" btrfs "" "$1"
	for s in "/disk/$2.top"/*; do
		name=${s##*/}
		{ [ -e "$s/etc/fstab" ] || [ -d "$s/boot" ]; } || continue
		try "$1" "/disk/$2.$name" btrfs "subvol=$name" && described "/disk/$2.$name" "$3" btrfs "$name" "$1"
	done
}

# on_first NAME... reports whether one of some block devices lies on the disk, if only in part.
on_first() {
	for name; do
		name=${name##*/}
		case $name in
		"${disk#/dev/}" | "${disk#/dev/}"[0-9]*) return 0 ;;
		md*) on_first $(members "${name%p*}") && return 0 ;;
		dm-*) on_first "/sys/block/$name/slaves"/* && return 0 ;;
		esac
	done
	return 1
}

case $1 in
mount)
	shift
	for n; do
		device=$disk
		[ "$n" = 0 ] || device=$disk$n
		member "${disk#/dev/}" || member "${device#/dev/}" || mounted "$device" "$n" "$n"
	done
	for sys in /sys/class/block/md*; do # arrays, and their partitions
		on_first "$sys" || continue
		name=${sys##*/}
		case $name in
		*p*) n=${name##*p} ;;
		*) n=0 ;;
		esac
		mounted "/dev/$name" "$name" "$n"
	done
	for sys in /sys/block/dm-*; do # logical volumes, of whatever partitions
		on_first "$sys" || continue
		name=$(cat "$sys/dm/name")
		mkdir -p /dev/mapper
		ln -sf "/dev/${sys##*/}" "/dev/mapper/$name"
		mounted "/dev/mapper/$name" "$name" -1
	done
	;;
list | pack)
	cd "$2" || exit
	set -- "$1" etc/fstab etc/os-release boot loader EFI efi grub grub2 extlinux syslinux isolinux \
		vmlinuz* vmlinux* bzImage* initrd* initramfs* *.cfg *.conf
	what=$1
	shift
	# A name of several lines is nobody's kernel.
	if [ "$what" = list ]; then
		find "$@" -maxdepth 6 -type f -size +2047 ! -name '*
*' -exec stat -c '%s %n' {} + 2>/dev/null
	else
		find "$@" -maxdepth 6 \( -type f -size -2048 -o -type l \) ! -name '*.mod' ! -name '*.mo' ! -name '*
*' -print0 2>/dev/null | xargs -0 -r tar -cf -
	fi
	;;
esac
true
