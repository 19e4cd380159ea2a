#!/bin/busybox sh
# Stage 1, PID 1 in the initial RAM file system: load the modules which this kernel needs to see a virtio disk, put a
# writable layer in memory over the shared read-only root, and hand over to the init in there.
# busybox brings every command, so there is nothing else in this archive.

fail() {
    echo "machine-guest: stage 1 failed: $*" >/dev/console
    # PID 1 may not return; the kernel panics and, with panic=-1, ends the guest at once.
    exit 1
}

# Applets are started as /proc/self/exe: until /proc is there, busybox has to be named.
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

# The numbers in front keep the order of dependencies, which plain insmod does not know.
for module in /modules/*.ko; do
    insmod "$module" || fail "insmod $module"
done

# The root is the disk with an erofs superblock: no bus, order or serial number to agree on.
tries=0
root=
while [ -z "$root" ]; do
    for disk in /dev/vd?; do
        [ -b "$disk" ] || continue
        magic=$(dd if="$disk" bs=4 skip=256 count=1 2>/dev/null | hexdump -e '4/1 "%02x"')
        [ "$magic" = e2e1f5e0 ] && root=$disk && break
    done
    tries=$((tries + 1))
    [ -n "$root" ] || [ "$tries" -lt 50 ] || fail "no disk with an erofs root among: $(echo /dev/vd?)"
    [ -n "$root" ] || sleep 0.1
done

mount -t erofs -o ro "$root" /lower || fail "mount $root"
mount -t tmpfs -o mode=755 tmpfs /layer || fail "mount tmpfs"
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work overlay /root || fail "mount overlay"

for directory in dev sys proc; do
    mount --move "/$directory" "/root/$directory"
done
exec /bin/busybox switch_root /root /usr/lib/machine/init.sh
