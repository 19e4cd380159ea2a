#!/bin/busybox sh
# PID 1 of the small guest: network, seed, home disk, sshd, and then two watchers, one for the size of the home disk and one
# for the power button. busybox's shell runs its own applets without exec, which is what makes this boot in seconds
# under software emulation. Stage 1 has mounted /proc, /sys and /dev and loaded the modules.
# shellcheck shell=busybox

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root
HOME_DIRECTORY=/home/machine
HOME_DISK=

. /usr/lib/machine/seed.sh

say() {
    echo "machine-guest: $*" >/dev/console
}

load_modules() {
    for module; do
        [ -d "/sys/module/$module" ] || insmod "/usr/lib/machine/modules/$module.ko"
    done
}

mount_system() {
    mkdir -p /dev/pts /dev/shm /run/sshd /run/lock /run/machine /etc/ssh/sshd_config.d
    mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
    ln -sf /proc/self/fd /dev/fd
    chmod 1777 /tmp /var/tmp /run/lock
    tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
    echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range
}

# The addresses of QEMU's user network never change, so there is nothing to ask a DHCP server.
start_network() {
    ifconfig lo 127.0.0.1
    ifconfig eth0 10.0.2.15 netmask 255.255.255.0 && route add default gw 10.0.2.2
}

find_home() {
    for block in /sys/block/vd*; do
        serial=
        read -r serial <"$block/serial" # its end is no end of line, so read "fails"
        [ "$serial" = home ] && HOME_DISK=${block##*/} && return 0
    done
    return 1
}

# is_blank DISK: true only if the first MiB was read whole and is zero, and no signature is known anywhere else.
is_blank() {
    dd if="$1" of=/run/machine/head bs=64k count=16 2>/dev/null || return 1
    [ "$(tr -d '\0' </run/machine/head | wc -c)" = 0 ] || return 1
    [ "$(wc -c </run/machine/head)" = 1048576 ] || return 1
    rm /run/machine/head
    blkid -p "$1" >/dev/null
    [ $? = 2 ]
}

make_home() {
    say "making a file system on the blank home disk"
    # The owner is set by mke2fs itself: there is no moment with a mountable home that belongs to root.
    /usr/sbin/mke2fs -q -t ext4 -m 0 -L home \
        -E root_owner=1000:1000,lazy_itable_init=1,lazy_journal_init=1,nodiscard "$1" || return 1
    mount -t ext4 "$1" "$HOME_DIRECTORY" || return 1
    rmdir "$HOME_DIRECTORY/lost+found"
    cp -r /etc/skel/. "$HOME_DIRECTORY"
    chown -R machine:machine "$HOME_DIRECTORY"
}

mount_home() {
    mkdir -p "$HOME_DIRECTORY"
    if ! find_home; then
        say "no disk has the serial number home: $HOME_DIRECTORY is in memory"
        cp -r /etc/skel/. "$HOME_DIRECTORY"
        chown -R machine:machine "$HOME_DIRECTORY"
        return 0
    fi
    disk=/dev/$HOME_DISK
    mount -t ext4 "$disk" "$HOME_DIRECTORY" 2>/dev/null && return
    if is_blank "$disk"; then
        make_home "$disk" && return
    else
        e2fsck -p "$disk" >/dev/console 2>&1
        mount -t ext4 "$disk" "$HOME_DIRECTORY" && return
    fi
    # An empty directory of root's is better than a home in memory whose content would be lost unnoticed.
    HOME_DISK=
    say "the home disk could not be mounted and was left alone; log in and repair $disk with sudo"
    return 1
}

# share_home: root's home is the same disk. Where that could not be mounted it can only be read: root could write to what
# is there instead, and would lose it unnoticed.
share_home() {
    mount --bind "$HOME_DIRECTORY" /root || say "/root could not be made the home disk"
    [ "$1" = 0 ] || mount -o remount,bind,ro "$HOME_DIRECTORY" /root
}

# grow_home: enlarge the file system whenever the disk has grown, at boot or while it is mounted.
grow_home() {
    known=0
    while :; do
        read -r size <"/sys/block/$HOME_DISK/size"
        if [ "$size" != "$known" ]; then
            resize2fs "/dev/$HOME_DISK" >/run/machine/resize 2>&1 || say "resize2fs: $(cat /run/machine/resize)"
            [ "$known" = 0 ] || say "the home disk has grown to $((size / 2048)) MiB"
            known=$size
        fi
        sleep 2
    done
}

watch_power() {
    for device in /sys/class/input/event*; do
        read -r name <"$device/device/name"
        [ "$name" = "Power Button" ] || continue
        dd if="/dev/input/${device##*/}" of=/dev/null bs=24 count=1 2>/dev/null
        kill -USR1 1
        return
    done
    say "there is no power button: this guest can only be switched off from inside"
}

host_key() {
    ls /etc/ssh/ssh_host_*_key >/dev/null 2>&1 && return
    say "the seed has no host key: making one"
    ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
}

serve_ssh() {
    while :; do
        # Without -r every connection would start sshd anew, which costs half a second here.
        /usr/sbin/sshd -D -e -r 2>/dev/console &
        echo $! >/run/machine/sshd
        wait $!
        say "sshd ended with code $?, starting it again"
        sleep 1
    done
}

# ssh_ports: the ports on which our sshd listens now; its sockets are found by inode, whatever the configuration.
ssh_ports() {
    read -r pid </run/machine/sshd || return
    for descriptor in "/proc/$pid/fd"/[3-9]; do
        socket=$(readlink "$descriptor")
        socket=${socket#socket:[}
        [ -n "$socket" ] || continue
        cat /proc/net/tcp /proc/net/tcp6 | while read -r _ address _ state _ _ _ _ _ inode _; do
            [ "$state" = 0A ] && [ "$inode]" = "$socket" ] && echo $((0x${address##*:}))
        done
    done | sort -nu
} 2>/dev/null

# The host waits for this line: before it, QEMU's port forwarding accepts connections which nobody answers.
announce() {
    until ports=$(ssh_ports) && [ -n "$ports" ]; do
        sleep 0.05
    done
    read -r uptime _ </proc/uptime
    say "sshd is listening on port" $ports "after $uptime s"
}

users_left() {
    for process in /proc/[0-9]*; do
        [ "$process" = /proc/1 ] && continue
        # Kernel threads and zombies have no command line.
        read -r command <"$process/cmdline" && return 0
        [ -n "$command" ] && return 0
    done
    return 1
} 2>/dev/null

# stop poweroff|reboot: a second for everybody to end, then the disk is put in order whatever happens.
stop() {
    trap '' USR1 USR2 TERM INT
    say "going down for $1"
    kill -TERM -1
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        users_left || break
        sleep 0.1
    done
    kill -KILL -1
    sync
    # A disk that is mounted twice is in order only after both.
    { umount /root && umount "$HOME_DIRECTORY"; } 2>/dev/null || mount -o remount,ro "$HOME_DIRECTORY" 2>/dev/null
    "$1" -f
    while :; do sleep 60; done
}

# busybox's poweroff, halt and reboot ask PID 1 by these signals.
trap 'stop poweroff' USR1 USR2
trap 'stop reboot' TERM INT

mount_system
watch_power &
start_network
find_seed
read_seed
seed_early
mount_home
share_home $?
seed_apply
seed_script
place_keys
host_key
serve_ssh &
{
    # What can wait, waits until somebody can log in.
    announce
    seed_final &
    [ -z "$HOME_DISK" ] || grow_home
} &

while :; do
    wait
    sleep 1
done
