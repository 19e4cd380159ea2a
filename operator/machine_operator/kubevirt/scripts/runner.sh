#!/bin/sh
# Runs programs for the gateway: one of these for each connection, told line by line on its standard input what to do.
#
# To start a program costs more than most commands take, so what a job needs is done by the shell itself, in a subshell
# (its keeper) that outlives this process and the connection. All that is known about a job is in files of the spool,
# so that whoever comes next can go on from there:
#
#   ID.claim       made once, so a job starts once: slot, keeper's pid and start time, when, timeout, bytes to keep
#   SLOT.pid       pid of the program, which leads a process group of its own
#   SLOT.end       how it ended: status, signal (0: none), whether there are artifacts; SLOT.no: why it did not start
#   SLOT.out .err  the first bytes of its output, while it runs; SLOT.count: how many there were altogether
#
# Output goes through pipes: programs open /dev/stdout anew, which would truncate a file. Nobody reads a pipe before
# the gateway asks for it (soon after the start) or the program has ended, and then by a program of its own only if
# anything has been written: the kernel counts in /proc/PID/io what a process and those that it waited for have written.
#
# Answers are lines that begin with the connection's token. Each is one write below PIPE_BUF, so they never mix.
#
# For dash, busybox ash and bash. In bash, job control gives a program its process group, and SIGINT and SIGQUIT are as
# usual in it. Elsewhere setsid does the former, and those two signals are ignored, as in all asynchronous commands.

say() { printf '%s\n' "$token $*"; }

# The process of that number, or `self`: its pid, and when it began, in ticks. Not 0: there is none.
process() {
  IFS= read -r process <"/proc/$1/stat" || return
  pid=${process%% *} process=${process##*) }
  # shellcheck disable=SC2086 # it is a list of numbers
  set -- $process
  case $1 in Z) return 1 ;; esac
  shift 19
  began=$1
} 2>/dev/null

uptime() {
  read -r now _ </proc/uptime
  now=${now%.*}
}

# What this process and the children that it has waited for have written so far; -1 where the kernel does not count.
written() {
  written=-1
  while read -r key value; do
    case $key in wchar:) written=$value ;; esac
  done </proc/self/io
} 2>/dev/null

# --- slots: what a job needs that takes a program to make, made for many at once while nothing else is to be done

fill() {
  n=$made made=$((made + $1)) fifos='' directories=''
  while [ "$n" -lt "$made" ]; do
    n=$((n + 1))
    fifos="$fifos $token-$n.0 $token-$n.1 $token-$n.2" directories="$directories $token-$n"
  done
  # shellcheck disable=SC2086 # these are lists
  (cd "$spool" && mkfifo $fifos) 2>/dev/null
  # shellcheck disable=SC2086
  (cd "$artifacts" && mkdir $directories) 2>/dev/null
  say filled $((made - used))
}

# --- one job

# job ID KEPT TIMEOUT STDIN DIRECTORY NUMBER [NAME=VALUE…] PROGRAM [ARGUMENT…]
job() {
  [ "$used" -lt "$made" ] || fill 4
  used=$((used + 1)) slot=$token-$used
  keep "$@" </dev/null &
  jobs >/dev/null # a shell keeps what has ended until it is asked about it
}

keep() {
  id=$1 kept=$2 input=$4 file=$spool/$slot place=$artifacts/$slot
  claim "$3" 2>/dev/null || return
  # A full home disk must not keep anybody from making room.
  [ -d "$place" ] || { place=$file.d && mkdir "$place"; } 2>/dev/null
  shift 4
  exec 2>"$file.say" # where the shell says what signal a program died of
  # To open it for both directions first never blocks; but only what is opened for reading sees the end.
  exec 6<>"$file.1" 7<"$file.1" 8<>"$file.2" 9<"$file.2"
  readers='' silent='' woken=''
  written
  before=$written
  [ -z "$control" ] || set -m
  (run "$@") <"$input" >&6 2>&8 6>&- 7<&- 8>&- 9<&- &
  program=$!
  [ -z "$control" ] || set +m
  exec 6>&- 8>&-
  trap wake URG # of which nobody dies who has no trap yet
  printf '%s\n' "$program" >"$file.pid"
  started="started $id $slot $keeper"
  say "$started"
  attend
  finish
}

claim() {
  process self
  keeper=$pid
  uptime
  set -C
  true >"$spool/$id.claim"
  mine=$?
  set +C
  if [ "$mine" -ne 0 ] && [ -e "$spool/$id.claim" ]; then
    say known "$id"
    return 1
  fi
  if [ "$mine" -eq 0 ] && [ -p "$file.1" ] && [ -p "$file.2" ] && true >"$file.say" &&
    printf '%s\n' "$slot $keeper $began $now $1 $kept" >"$spool/$id.claim"; then
    return
  fi
  [ "$mine" -ne 0 ] || rm -f "$spool/$id.claim" # as if it had never been
  say refused "$id" "nothing can be written to $spool: is the disk full?"
  return 1
}

# The program itself, in a process of its own. Our variables have names that do not collide with the job's.
run() {
  trap - HUP PIPE
  [ -z "$control" ] || trap - INT QUIT
  umask 022
  cd -- "$1" 2>/dev/null || refuse "cwd: $1: no such directory"
  _machine_n=$2
  shift 2
  {
    export DEDALUS_ARTIFACTS_DIR="$place"
    unset OLDPWD SHLVL
    while [ "$_machine_n" -gt 0 ]; do
      # shellcheck disable=SC2163 # it is NAME=VALUE
      export "$1"
      shift
      _machine_n=$((_machine_n - 1))
    done
  } 2>/dev/null
  check "$1"
  trap 'refuse "it cannot be executed"' EXIT # gone with what follows, unless that fails
  [ -n "$control" ] || exec $setsid "$@" 2>&2
  exec "$@"
}

check() {
  case $1 in
    */*)
      [ -e "$1" ] || refuse "$1: not found"
      [ ! -d "$1" ] || refuse "$1: is a directory"
      [ -x "$1" ] || refuse "$1: not executable"
      ;;
    *)
      IFS=:
      set -f
      for _machine_d in $PATH; do
        if [ -f "$_machine_d/$1" ] && [ -x "$_machine_d/$1" ]; then
          set +f
          IFS=$ifs
          return
        fi
      done
      refuse "$1: not found in PATH"
      ;;
  esac
}

refuse() {
  trap - EXIT
  printf '%.500s\n' "$1" >"$file.no"
  exit 127
}

wake() {
  woken=1
  read_pipes
}

# Wait until the program has ended. A signal that has a trap ends a wait early, with its own number.
attend() {
  while :; do
    woken=''
    wait "$program"
    status=$?
    [ -n "$woken" ] && [ "$status" -eq 151 ] || break # 128 + SIGURG
  done
  trap '' URG
}

finish() {
  written
  signal=0 left=0 why=''
  if [ "$status" -gt 128 ]; then
    read -r killed <"$file.kill"
    # bash says nothing of SIGTERM; where it was sent by us, that is what it died of.
    if [ -s "$file.say" ] || [ "$killed" = $((status - 128)) ]; then signal=$((status - 128)); fi
  fi 2>/dev/null
  [ ! -e "$file.no" ] || IFS= read -r why <"$file.no"
  for entry in "$place"/* "$place"/.[!.]*; do
    if [ -e "$entry" ] || [ -L "$entry" ]; then left=1 && break; fi
  done
  printf '%s\n' "$status $signal $left" >"$file.end"
  say ended "$id" "$slot" "$status" "$signal" "$left" "$why"
  # The shell itself has written two lines meanwhile.
  own=$((${#program} + 1 + ${#token} + 1 + ${#started} + 1))
  [ "$before" -lt 0 ] || [ $((written - before)) -ne "$own" ] || silent=1
  read_pipes
  wait
  read -r out <"$file.out.n"
  read -r err <"$file.err.n"
  [ ! -e "$spool/$id.claim" ] || printf '%s\n' "$out $err" >"$file.count"
  say counted "$id" "$out" "$err"
}

read_pipes() {
  [ -z "$readers" ] || return
  readers=1
  drain out <&7 >/dev/null 2>&1 7<&- 9<&- &
  drain err <&9 >/dev/null 2>&1 7<&- 9<&- &
  exec 7<&- 9<&-
}

# Read all, count it, and keep the first part in a file, each byte at once.
drain() {
  part=$file.$1 total=0 end=''
  [ -z "$silent" ] || glance
  while [ -z "$end" ] && [ "$total" -lt "$kept" ]; do
    blocks=$(((kept - total + 8191) / 8192))
    statistics=$(LC_ALL=C dd bs=8192 count="$blocks" 2>&1 >>"$part")
    understand
  done
  case $end in
    '' | failed)
      rest=$(wc -c)
      total=$((total + rest))
      ;;
  esac
  printf '%s\n' "$total" >"$part.n"
}

# Nothing has been written when the program ended. Most likely there is just the end; else it is from something that
# the program left behind.
glance() {
  LC_ALL=C
  if IFS= read -r line; then
    printf '%s\n' "$line" >"$part"
    total=$((${#line} + 1))
  else
    [ -z "$line" ] || printf '%s' "$line" >"$part"
    total=${#line} end=end
  fi
}

# dd says: "FULL+PARTIAL records in", the same of records out, and "BYTES bytes", after what went wrong.
understand() {
  case $statistics in dd:*) end=failed statistics=${statistics#*"$newline"} ;; esac
  bytes=${statistics##*records out"$newline"} full=${statistics%%+*} partial=${statistics#*+}
  bytes=${bytes%% *} partial=${partial%% *}
  case $bytes$full$partial in
    '' | *[!0-9]*) # not a word: it was killed
      bytes=$(wc -c <"$part")
      total=$bytes end=failed
      return
      ;;
  esac
  total=$((total + bytes))
  if [ -n "$end" ]; then
    total=$((total + 8192 * full - bytes / 8192 * 8192)) # what it had read already
  elif [ $((full + partial)) -lt "$blocks" ]; then
    end=end
  fi
}

# --- asked about jobs

# Where the job is: its slot, keeper, start, timeout, and what to keep. Not 0: there is no such job.
find() {
  slot=''
  [ -e "$spool/$1.claim" ] && read -r slot keeper born at timeout kept <"$spool/$1.claim"
  [ -n "$slot" ]
}

alive() { process "$keeper" && [ "$began" = "$born" ]; }

state() {
  if ! find "$1"; then
    if [ -e "$spool/$1.claim" ]; then say state "$1" starting; else say state "$1" absent; fi
    return
  fi
  file=$spool/$slot
  if ! [ -s "$file.end" ] && alive; then
    say state "$1" running "$slot" "$kept"
    return
  fi
  status='' signal=0 left=0 out=- err=- why='' late=0
  [ ! -s "$file.end" ] || read -r status signal left <"$file.end"
  [ ! -s "$file.count" ] || read -r out err <"$file.count"
  [ ! -s "$file.no" ] || IFS= read -r why <"$file.no"
  [ ! -e "$file.late" ] || late=1
  say state "$1" ended "$slot" "$kept" "${status:--}" "$signal" "$left" "$out" "$err" "$late" "$why"
}

# Have the pipes of a job read from now on.
watch() { ! find "$1" || ! alive || kill -URG "$keeper"; } 2>/dev/null

# signal ID NUMBER: to all of its process group, unless it has ended.
signal() {
  if find "$1" && ! [ -s "$spool/$slot.end" ] && read -r program <"$spool/$slot.pid"; then
    printf '%s\n' "$2" >"$spool/$slot.kill"
    # Before it has become the leader of a group, it is alone.
    kill "-$2" -- "-$program" || kill "-$2" "$program"
  fi 2>/dev/null
  say signalled "$1"
}

# forget NUMBER ID…: its answer has the number.
forget() {
  number=$1 left=$(($# - 1))
  shift
  while [ "$left" -gt 0 ]; do
    ! find "$1" || set -- "$@" "$spool/$slot".* "$artifacts/$slot"
    set -- "$@" "$spool/$1".*
    shift
    left=$((left - 1))
  done
  {
    rm -rf -- "$@" 2>/dev/null
    say forgotten "$number"
  } </dev/null &
}

# --- when the gateway is gone

# What it has started goes on. What is over its time is ended here: nobody else might come.
guard() {
  process self
  me=$pid
  printf '%s\n' "$me" >"$spool/guard"
  other=$me left=1
  while [ "$left" -eq 1 ] && [ "$other" = "$me" ]; do
    left=0
    uptime
    for claim in "$spool"/*.claim; do
      id=${claim##*/}
      id=${id%.claim}
      if find "$id" && ! [ -s "$spool/$slot.end" ] && alive; then
        left=1
        [ -e "$spool/$slot.out" ] || kill -URG "$keeper"
        over=$((now - at - timeout - patience))
        [ "$over" -lt 0 ] || true >"$spool/$slot.late"
        if [ "$over" -ge 5 ]; then signal "$id" 9; elif [ "$over" -ge 0 ]; then signal "$id" 15; fi
      fi
    done
    [ "$left" -eq 0 ] || sleep 1
    read -r other <"$spool/guard"
  done
} >/dev/null 2>&1

# serve SPOOL ARTIFACTS TOKEN PATIENCE
serve() {
  spool=$1 artifacts=$2 token=$3 patience=$4
  made=0 used=0 ifs=$IFS control='' setsid=''
  newline='
'
  umask 077
  unset CDPATH MAIL SSH_CLIENT SSH_CONNECTION SSH_TTY XDG_SESSION_ID XDG_SESSION_TYPE XDG_SESSION_CLASS
  export LANG="${LANG:-C.UTF-8}"
  if [ -n "$BASH_VERSION" ]; then control=1; else setsid=$(command -v setsid); fi
  [ -d "$spool" ] && [ -d "$artifacts" ] || mkdir -p "$spool" "$artifacts"
  trap '' HUP PIPE
  exec 2>/dev/null
  say ready
  while IFS= read -r line; do eval "$line"; done
  guard
}

# bash where there is one, unless another shell was asked for.
if [ "$1" = serve ]; then
  [ -n "$BASH_VERSION" ] || ! [ -x /bin/bash ] || exec /bin/bash "$0" "$@"
fi
shift
serve "$@"
