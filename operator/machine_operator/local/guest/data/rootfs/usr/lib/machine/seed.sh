# What init.sh does with the seed: find it among the disks, turn user-data into calls of the seed_* functions below
# (seed.jq), and run them. Root is made anew at every boot, so everything here is applied at every boot.
# shellcheck shell=busybox

SEED=/run/machine/seed # it has the host key in it: only root may look
KEYS=

# find_seed: copy the files of the NoCloud volume (ISO 9660 or vfat, labelled cidata in any case) to $SEED.
find_seed() {
    mkdir -p -m 700 "$SEED"
    mkdir -p /run/machine/volume
    for disk in /dev/vd?; do
        is_label "$disk" 32808 && copy_seed "$disk" iso9660 && return 0
    done
    for disk in /dev/vd?; do
        # The label of FAT12 and FAT16, and that of FAT32.
        is_label "$disk" 43 || is_label "$disk" 71 || continue
        load_modules fat vfat nls_cp437 nls_ascii nls_utf8
        copy_seed "$disk" vfat && return 0
    done
    say "no disk is labelled cidata: starting without a seed"
    return 1
}

# is_label DISK OFFSET
is_label() {
    case $(dd if="$1" bs=1 skip="$2" count=6 2>/dev/null | tr -d '\0') in
    [Cc][Ii][Dd][Aa][Tt][Aa]) return 0 ;;
    esac
    return 1
}

copy_seed() {
    mount -t "$2" -o ro "$1" /run/machine/volume || return 1
    for file in user-data meta-data network-config; do
        [ -f "/run/machine/volume/$file" ] && cat "/run/machine/volume/$file" >"$SEED/$file"
    done
    umount /run/machine/volume
    touch "$SEED/user-data" "$SEED/meta-data"
}

# read_seed: define seed_early, seed_apply, seed_script and seed_final from the files in $SEED.
read_seed() {
    seed_early() { :; }
    seed_apply() { :; }
    seed_script() { :; }
    seed_final() { :; }
    [ -f "$SEED/user-data" ] || return
    read_metadata
    meta=$SEED/meta-data
    is_json "$meta" || meta=/dev/null
    user=$SEED/user-data
    if read -r first <"$user" && [ "${first#\#!}" != "$first" ]; then
        chmod 700 "$user"
        seed_script() { seed_run "$SEED/user-data"; }
        user=/dev/null
    elif ! is_json "$user"; then
        say "user-data is ignored: it is not the JSON form of #cloud-config"
        user=/dev/null
    fi
    translate "$user" "$meta" && return
    say "user-data is ignored: $(cat "$SEED/error")"
    translate /dev/null "$meta" || say "meta-data is ignored: $(cat "$SEED/error")"
}

is_json() {
    grep -q '^[[:space:]]*{' "$1"
}

# translate USER META: both are JSON (after comment lines, which are cloud-init's) or empty.
translate() {
    {
        grep -q . "$1" || echo '{}'
        sed -n '/^[[:space:]]*{/,$p' "$1"
        cat "$2"
    } | jq -r -s -f /usr/lib/machine/seed.jq >"$SEED/calls.sh" 2>"$SEED/error" && . "$SEED/calls.sh"
}

# read_metadata: the plain lines "key: value"; the JSON form is read by seed.jq.
read_metadata() {
    while IFS=': ' read -r key value; do
        case $key in
        instance-id) seed_instance "$(unquote "$value")" ;;
        local-hostname) seed_hostname "$(unquote "$value")" ;;
        esac
    done <"$SEED/meta-data"
}

# The same machine has the same machine-id at every boot.
seed_instance() {
    printf %s "$1" | md5sum | cut -d ' ' -f 1 >/etc/machine-id
}

unquote() {
    value=${1#[\'\"]}
    echo "${value%[\'\"]}"
}

seed_hostname() {
    hostname "$1"
    echo "$1" >/etc/hostname
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost\n' "$1" >/etc/hosts
}

# seed_run WORD...: one command of bootcmd or runcmd. It may fail; the boot goes on, as in cloud-init.
seed_run() {
    "$@" </dev/null >>/var/log/seed.log 2>&1 || say "a command of the seed ended with code $?: $*"
}

# seed_user NAME UID SHELL GROUPS GECOS: make the login user unless it is there.
seed_user() {
    if ! grep -q "^$1:" /etc/passwd; then
        uid=${2:-$(next_id)}
        echo "$1:x:$uid:" >>/etc/group
        echo "$1:x:$uid:$uid:$5:/home/$1:/bin/ash" >>/etc/passwd
        echo "$1:*:19000:0:99999:7:::" >>/etc/shadow
        mkdir -p "/home/$1"
        cp -r /etc/skel/. "/home/$1"
        chown -R "$uid:$uid" "/home/$1"
    fi
    [ -n "$3" ] && [ -x "$3" ] && sed -i "s|^\($1:.*\):[^:]*\$|\1:$3|" /etc/passwd
    for group in $(echo "$4" | tr , ' '); do
        grep -q "^$group:" /etc/group || echo "$group:x:$(next_id):" >>/etc/group
        sed -i "/^$group:/{s/:\$/:$1/;t;/[:,]$1\(,\|\$\)/!s/\$/,$1/}" /etc/group
    done
}

next_id() {
    id=1001
    while cut -d: -f3 /etc/passwd /etc/group | grep -qx "$id"; do
        id=$((id + 1))
    done
    echo "$id"
}

seed_sudo() {
    echo "$1 $2" >>"/etc/sudoers.d/90-seed-$1"
    chmod 440 "/etc/sudoers.d/90-seed-$1"
}

# The keys wait until all files are written: sshd_config.d may say where they belong.
seed_key() {
    KEYS="$KEYS$1 $2
"
}

seed_login_key() {
    seed_key machine "$1"
    [ "$2" = true ] || seed_key root "$1"
}

# seed_host_key TYPE private|public|certificate CONTENT
seed_host_key() {
    file=/etc/ssh/ssh_host_$1_key
    case $2 in
    private) (umask 077 && echo "$3" >"$file") ;;
    public) echo "$3" >"$file.pub" ;;
    certificate)
        echo "$3" >"$file-cert.pub"
        echo "HostCertificate $file-cert.pub" >>/etc/ssh/sshd_config
        ;;
    esac
}

# seed_file PATH PERMISSIONS OWNER ENCODING APPEND CONTENT
seed_file() {
    mkdir -p "${1%/*}/"
    [ "$5" = true ] || : >"$1"
    [ "$5" = true ] || chmod "${2:-0644}" "$1"
    case $4 in
    b64 | base64) printf %s "$6" | base64 -d ;;
    gz+b64 | gz+base64 | gzip+b64 | gzip+base64) printf %s "$6" | base64 -d | gunzip ;;
    *) printf %s "$6" ;;
    esac >>"$1" || say "write_files: $1 could not be written"
    [ -z "$2" ] || chmod "$2" "$1"
    [ -z "$3" ] || chown "$3" "$1" || say "write_files: $1 keeps its owner, $3 is unknown"
}

# place_keys: append each key once to the first file in which sshd looks for it.
place_keys() {
    place=$(cat /etc/ssh/sshd_config.d/*.conf /etc/ssh/sshd_config 2>/dev/null |
        sed -n 's/^[[:space:]]*authorizedkeysfile[[:space:]=]*//Ip' | head -n 1)
    place=${place%% *}
    [ "$place" = none ] && return
    printf %s "$KEYS" | while read -r user key; do
        home=$(sed -n "s/^$user:\([^:]*:\)\{4\}\([^:]*\):.*/\2/p" /etc/passwd)
        file=$(echo "$place" | sed "s|%u|$user|g; s|%h|$home|g; s|%%|%|g")
        case $file in
        /*) mkdir -p "${file%/*}" ;;
        *)
            file=$home/$file
            mkdir -p -m 700 "${file%/*}" && chown "$user:" "${file%/*}"
            ;;
        esac
        grep -qxF "$key" "$file" 2>/dev/null || echo "$key" >>"$file"
        case $file in "$home"/*) chown "$user:" "$file" ;; esac
    done
}
