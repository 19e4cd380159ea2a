#!/bin/sh
# Shells on a pty that outlive the connections of those who use them.
#
#   terminal ROOT start ID COLUMNS ROWS DETACHED LIFETIME < PROFILE   starts a shell, once; seconds
#   terminal ROOT attach ID OFFSET    the channel is the terminal: input on stdin, output from OFFSET on stdout
#   terminal ROOT resize ID COLUMNS ROWS
#   terminal ROOT kill ID
#
#   attach ─ cat ─> in (fifo) ─> script ─> pty: the shell
#   attach <─ tail ── log <───── script <┘
#                     count (fifo) <┘ and the governor reads it, or does not
#
# `log` is all that came out of the pty, so a place in the output is an offset in it; what nobody needs any more is
# punched out of the file. `script` writes everything twice, to `log` and to `count`. The governor throws the latter
# away, and every so often looks where the readers are: while one is far behind it reads no more, so that `script`
# waits, the pty fills, and the shell waits as well. With nobody attached it goes on, and the last KEEP bytes stay.
set -u

readonly KEEP=262144 STEP=524288 BEHIND=1048576 INPUT=67108864

self=$0 root=$1 verb=$2 id=$3
shift 3
# Of our own: a file system in memory, where `tail` hears of changes (of an overlay it does not), the home disk may be
# full, and all is gone with the boot.
if [ "$root" = - ]; then
  root=/run/machine-terminals
  [ "$(stat -f -c %T /run 2>/dev/null)" = tmpfs ] || root=/dev/shm/machine-terminals
fi
here=$root/$id

# Not what a busybox shell would run instead: its script is another one, its tail looks once a second.
tool() {
  for place in /usr/bin /bin /usr/sbin /sbin; do
    [ -x "$place/$1" ] && { echo "$place/$1"; return 0; }
  done
  return 1
}

start() {
  for program in script setsid stty tail head fallocate mkfifo stat env; do
    tool "$program" >/dev/null || { echo "missing $program" >&2; exit 69; }
  done
  umask 077
  mkdir -p "$root" || exit 73
  if [ -d "$here" ]; then
    await
    exit 0
  fi
  stage=$root/.new-$id-$$
  mkdir "$stage" "$stage/readers" && cat >"$stage/profile" && mkfifo "$stage/in" "$stage/count" || exit 73
  : >"$stage/log"
  echo 0 >"$stage/trimmed"
  echo "$1 $2" >"$stage/size"
  if ! mv -T "$stage" "$here" 2>/dev/null; then
    rm -rf "$stage" # somebody else was faster, on behalf of the same terminal
    [ -d "$here" ] || exit 73
  else
    "$(tool setsid)" sh "$self" "$root" hold "$id" "$3" "$4" </dev/null >/dev/null 2>&1 &
  fi
  await
}

# Until its pty is as it should be: what is typed before would have no echo.
await() {
  tries=0
  until [ -e "$here/tty" ] || [ -e "$here/ended" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 200 ] || exit 0 # slow, but on its way
    sleep 0.05
  done
}

# ---- the holder: as long as the shell lives, and a while longer

hold() {
  cd "$here" || exit 73
  unset SSH_CLIENT SSH_CONNECTION SSH_TTY SSH_ORIGINAL_COMMAND
  exec 3<>in # with a writer of its own it never ends, whoever comes and goes
  govern <count 3<&- &
  SHELL=/bin/sh "$(tool script)" -q -f -e -c "exec sh '$self' '$root' shell '$id'" count \
    <&3 >>log 2>/dev/null 3<&- &
  script=$!
  echo "$script" >script
  watch "$1" "$2" 3<&- &
  wait "$script"
  echo "$?" >ended.new
  mv ended.new ended
  for reader in readers/*; do
    [ -e "$reader" ] && read -r _ cat <"$reader" && [ "$cat" != 0 ] && kill "$cat" 2>/dev/null
  done
  trap '' TERM
  kill -TERM 0 # all that belongs to the holder; the shell's processes are in a session of their own
  sleep "$1"
  rm -f log profile
}

shell() {
  cd "$here" || exit 73
  echo "$$" >pid
  stty sane
  stty iutf8 2>/dev/null
  tty >tty.new
  mv tty.new tty
  read -r columns rows <size # not before: a resize writes it, and then looks whether there is a tty
  stty rows "$rows" cols "$columns"
  . ./profile # sets `program`, `directory`, and NAME=VALUE as arguments
  rm -f profile
  cd || cd /
  cd "$directory" 2>/dev/null || echo "machine: there is no directory $directory"
  case $program in */*) ;; *) program=$(command -v "$program" || echo "$program") ;; esac
  [ -x "$program" ] || { echo "machine: there is no shell $program"; exit 127; }
  login=
  case ${program##*/} in sh | ash | bash | dash | fish | ksh | mksh | zsh) login=-l ;; esac
  exec "$(tool env)" TERM=xterm-256color SHELL="$program" "$@" "$program" $login
}

govern() {
  while :; do
    head -c "$STEP" >/dev/null
    [ -e ended ] && exit
    kill -0 "$(cat script)" 2>/dev/null || exit
    while size=$(stat -c %s log); lowest; [ $((size - low)) -gt "$BEHIND" ]; do
      [ -e ended ] && exit
      sleep 0.05
    done
    trim
  done
}

# The place of the reader that is furthest behind, in `low`; without readers the end.
lowest() {
  low=$size
  for reader in readers/*; do
    [ -e "$reader" ] || continue
    kill -0 "${reader##*/}" 2>/dev/null || { rm -f "$reader"; continue; }
    place=
    read -r tail _ <"$reader" && [ "$tail" != 0 ] &&
      while read -r name value; do [ "$name" = pos: ] && place=$value; done <"/proc/$tail/fdinfo/3"
    [ -n "$place" ] || read -r place <trimmed # it is just coming
    [ "$place" -lt "$low" ] && low=$place
  done 2>/dev/null
}

trim() {
  read -r trimmed <trimmed
  to=$(((low < size - KEEP ? low : size - KEEP) / 4096 * 4096))
  [ "$to" -gt "$trimmed" ] || return 0
  echo "$to" >trimmed.new
  mv trimmed.new trimmed
  # Whoever has come in the meantime may have read the old value. Who comes later, reads the new one.
  before=$low
  lowest
  [ "$low" -lt "$before" ] && [ "$low" -lt "$to" ] && return 0
  "$(tool fallocate)" -p -o 0 -l "$to" log
}

watch() { # DETACHED LIFETIME
  until [ -e tty ]; do sleep 0.1; done
  # Input that the shell does not read is queued by newer versions of `script`, all of it.
  limit=$(tool prlimit) && "$limit" --pid "$(cat script)" --data="$INPUT"
  step=$(($1 < 60 ? ($1 + 3) / 4 : 15)) age=0 idle=0
  while sleep "$step"; do
    age=$((age + step)) idle=$((idle + step))
    attached && idle=0
    [ "$idle" -ge "$1" ] || [ "$age" -ge "$2" ] && end
  done
}

attached() {
  for reader in readers/*; do
    [ -e "$reader" ] && kill -0 "${reader##*/}" 2>/dev/null && return 0
  done
  return 1
}

# ---- for those who use it

attach() {
  cd "$here" 2>/dev/null || { echo absent >&2; exit 0; }
  exec 3<&0 # jobs in the background have /dev/null there
  trap 'rm -f "$here/readers/$$"' EXIT
  echo 0 0 >"readers/$$" # from here on nothing is thrown away
  size=$(stat -c %s log 2>/dev/null) || size=0
  read -r trimmed <trimmed
  offset=$1
  [ "$offset" = - ] && offset=$((size - KEEP))
  [ "$offset" -lt "$trimmed" ] && offset=$trimmed
  echo "at $offset" >&2
  printf 'machine-terminal\n'
  "$(tool tail)" -c "+$((offset + 1))" -f log 3<&- 2>/dev/null &
  tail=$!
  cat <&3 1<>in 3<&- &
  cat=$!
  echo "$tail $cat" >"readers/$$"
  [ -e ended ] || wait "$cat" # the client has gone, or the holder ends it
  if [ -e ended ]; then
    kill "$cat" 2>/dev/null
    read -r code <ended
    size=$(stat -c %s log 2>/dev/null) || size=0
    echo "ended $code $size" >&2
    cat <&3 >/dev/null # until the client has it all
  fi
  kill "$tail"
}

resize() {
  cd "$here" 2>/dev/null || exit 0
  echo "$1 $2" >size.new
  mv size.new size
  [ -e tty ] && [ ! -e ended ] && stty -F "$(cat tty)" cols "$1" rows "$2"
}

end() {
  if mkdir -p "$root" && mkdir -m 700 "$here" 2>/dev/null; then
    cd "$here" && mkdir readers && mkfifo in && : >log && echo 0 >trimmed && echo 0 >ended
    return # it shall not start any more
  fi
  cd "$here" && [ ! -e ended ] || return 0
  if [ -e pid ]; then
    read -r session <pid
    signal_session HUP
    signal_session CONT
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      [ -e ended ] && break
      sleep 0.2
    done
    signal_session KILL
  fi
  sleep 0.2
  [ -e ended ] || kill -KILL "$(cat script)" 2>/dev/null
}

signal_session() { # NAME
  signal_name=$1
  for process in /proc/[0-9]*; do
    read -r line 2>/dev/null <"$process/stat" || continue
    set -- ${line##*) } # state, parent, group, session
    [ "$4" = "$session" ] && kill -"$signal_name" "${process#/proc/}" 2>/dev/null
  done
}

case $verb in
start) start "$@" ;;
hold) hold "$@" ;;
shell) shell "$@" ;;
attach) attach "$@" ;;
resize) resize "$@" ;;
kill) end ;;
esac
