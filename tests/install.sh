# Installs a Debian on a disk as an installer would have laid it out: LAYOUT DISK IMAGE [SECOND-DISK].
# The image is a file system with the Debian, of the kind that the layout has for its root.
# The boot configuration is what Debian's own programs write. See installed_test.go.
set -e
layout=$1 disk=$2 image=$3 second=$4 root=/mnt/root
export DM_DISABLE_UDEV=1 MDADM_NO_UDEV=1
mkdir -p "$root"

# copied DEVICE puts the image there. Its holes are those of an empty disk.
copied() { dd if="$image" of="$1" bs=4M iflag=direct oflag=direct conv=sparse status=none; }

# uuid DEVICE
uuid() { blkid -s UUID -o value "$1"; }

# mounted DEVICE DIR TYPE [OPTIONS] mounts a file system in the new root, with a line for its fstab.
fstab=
mounted() {
	mkdir -p "$root$2"
	mount -t "$3" ${4:+-o "$4"} "$1" "$root$2"
	fstab="$fstab
UUID=$(uuid "$1") $2 $3 ${4:-defaults} 0 0"
}

case $layout in
ext4 | xfs)
	printf 'label: gpt\nstart=2048\n' | sfdisk -q "$disk"
	copied "${disk}1"
	mounted "${disk}1" / "$layout"
	;;
btrfs) # as openSUSE and Ubuntu do
	printf 'label: gpt\nstart=2048\n' | sfdisk -q "$disk"
	copied "${disk}1"
	mount "${disk}1" "$root"
	btrfs subvolume snapshot "$root" "$root/@" >/dev/null
	btrfs subvolume create "$root/@home" >/dev/null
	rm -r "$root/boot"
	umount "$root"
	mounted "${disk}1" / btrfs subvol=@
	mounted "${disk}1" /home btrfs subvol=@home
	;;
lvm)
	printf 'label: gpt\nstart=2048,type=E6D6D379-F507-44C2-A23C-238F2A3DF928\n' | sfdisk -q "$disk"
	pvcreate -qq "${disk}1" && vgcreate -qq the-group "${disk}1"
	lvcreate -qq -Zn -Wn -l 10%FREE -n home the-group && lvcreate -qq -Zn -Wn -l 100%FREE -n root the-group
	copied /dev/mapper/the--group-root
	mounted /dev/mapper/the--group-root / ext4
	;;
md)
	for d in "$disk" "$second"; do
		printf 'label: gpt\nstart=2048,type=A19D880F-05FC-4D3B-A006-743F0F84911E\n' | sfdisk -q "$d"
	done
	mdadm -q --create /dev/md0 --run --assume-clean --level=1 --raid-devices=2 "${disk}1" "${second}1"
	copied /dev/md0
	mounted /dev/md0 / ext4
	mdadm --detail --scan >>"$root/etc/mdadm/mdadm.conf"
	;;
separate-boot)
	printf 'label: gpt\nstart=2048,size=524288\nstart=526336\n' | sfdisk -q "$disk"
	mke2fs -q -t ext4 "${disk}1"
	copied "${disk}2"
	mount "${disk}2" "$root" && mv "$root/boot" "$root/installed" && umount "$root"
	mounted "${disk}2" / xfs
	mounted "${disk}1" /boot ext4
	mv "$root"/installed/* "$root/boot" && rmdir "$root/installed"
	;;
logical)
	printf 'label: dos\nstart=2048,size=20480\ntype=5,start=22528\nstart=24576,size=20480\nstart=47104\n' | sfdisk -q "$disk"
	copied "${disk}6"
	mounted "${disk}6" / ext4
	;;
systemd-boot | uki)
	printf 'label: gpt\nstart=2048,size=524288,type=U\nstart=526336\n' | sfdisk -q "$disk"
	mkfs.vfat "${disk}1" >/dev/null
	copied "${disk}2"
	mounted "${disk}2" / ext4
	mounted "${disk}1" /efi vfat
	;;
*)
	echo "no layout $layout" >&2
	exit 2
	;;
esac

echo "$fstab" >"$root/etc/fstab"
echo "$layout" >"$root/etc/hostname"
chmod 1777 "$root/tmp" "$root/var/tmp" # which mkfs.xfs does not take from its list of files
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
version=$(ls "$root/usr/lib/modules")
case $layout in
systemd-boot | uki)
	export SYSTEMD_RELAX_ESP_CHECKS=1 # which ask udev
	chroot "$root" systemd-machine-id-setup
	chroot "$root" bootctl install --no-variables --esp-path=/efi
	mkdir -p "$root/etc/kernel"
	echo "root=UUID=$(uuid "${disk}2") ro quiet" >"$root/etc/kernel/cmdline"
	;;
esac
case $layout in
systemd-boot)
	chroot "$root" /etc/kernel/postinst.d/zz-systemd-boot "$version" "/boot/vmlinuz-$version"
	rm -r "$root"/boot/*
	;;
uki) # as ukify does, which this Debian has not; the sections' addresses are only for a loader
	objcopy --add-section .osrel="$root/usr/lib/os-release" --change-section-vma .osrel=0x20000 \
		--add-section .cmdline="$root/etc/kernel/cmdline" --change-section-vma .cmdline=0x30000 \
		--add-section .linux="$root/boot/vmlinuz-$version" --change-section-vma .linux=0x2000000 \
		--add-section .initrd="$root/boot/initrd.img-$version" --change-section-vma .initrd=0x6000000 \
		"$root/usr/lib/systemd/boot/efi/linuxx64.efi.stub" "$root/efi/EFI/Linux/debian.efi"
	rm -r "$root"/boot/*
	;;
*)
	# udev would have made these; without them grub-mkconfig names the device.
	mkdir -p /dev/disk/by-uuid "$root/boot/grub"
	for d in "$disk"[0-9] /dev/mapper/the--group-root /dev/md0; do
		id=$([ ! -b "$d" ] || uuid "$d") && [ -n "$id" ] || continue
		ln -sf "$d" "/dev/disk/by-uuid/$id"
	done
	# As Debian's grub-pc asks for it; without the parts that find nothing here, and take their time.
	printf 'GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX_DEFAULT=quiet\n' >"$root/etc/default/grub"
	chmod -x "$root"/etc/grub.d/05_debian_theme "$root"/etc/grub.d/20_linux_xen "$root"/etc/grub.d/[34]*
	chroot "$root" grub-mkconfig -o /boot/grub/grub.cfg
	;;
esac
umount -R "$root"
[ "$layout" != lvm ] || vgchange -qq -an the-group
[ "$layout" != md ] || mdadm -q --stop /dev/md0
