#!/bin/sh
# Runs programs for the gateway: one of these for each connection, told line by line on its standard input what to do.
#
# To start a program costs more than most commands take, so what a job needs is done by the shell itself, in a subshell
# (its keeper) that outlives this process and the connection. All that is known about a job is in files of the spool,
# so that whoever comes next can go on from there:
#
#   ID.claim       made once, so a job starts once: slot, keeper's pid and start time, when, timeout, bytes to keep
#   SLOT.pid       pid of the program, which leads a process group of its own
#   SLOT.end       how it ended: status, signal (0: none), whether there are artifacts, how many bytes it wrote to all
#                  files; SLOT.no: why it did not start
#   SLOT.out .err  the first bytes of its output, while it runs; SLOT.count: how many there were altogether
#
# Output goes through pipes: programs open /dev/stdout anew, which would truncate a file. To read a pipe takes a program,
# so it is not done before the gateway asks for it (soon after the start; it is SIGURG that tells the keeper) or the
# program has ended, and then only if it has written anything: the kernel counts in /proc/PID/io what a process has
# written, with the children that it has waited for.
#
# Answers are lines that begin with the connection's token. Each is one write below PIPE_BUF, so they never mix.
#
# For dash, busybox ash and bash. In an asynchronous command SIGINT and SIGQUIT are ignored, and what it starts inherits
# that: bash can undo it, and coreutils' env for dash; under busybox it remains. bash gives a program its process group by
# job control; setsid does it for the others.

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

# fill NUMBER: that many more, beside everything else; `add` says which of them can be used.
fill() {
  first=$((planned + 1)) planned=$((planned + $1))
  { make_slots "$first" "$planned" && say filled "$first" "$planned"; } </dev/null &
  filler=$!
}

make_slots() {
  n=$1 last=$2 fifos=''
  set --
  while [ "$n" -le "$last" ]; do
    fifos="$fifos $token-$n.1 $token-$n.2 $token-$n.3"
    set -- "$@" "$artifacts/$token-$n"
    n=$((n + 1))
  done
  # shellcheck disable=SC2086 # it is a list
  (cd "$spool" && exec mkfifo $fifos) 2>/dev/null
  mkdir -p "$@" 2>/dev/null
  return 0
}

# add FIRST LAST
add() {
  n=$1
  while [ "$n" -le "$2" ]; do slots="$slots$token-$n " n=$((n + 1)); done
}

# --- one job

# job ID KEPT TIMEOUT STDIN DIRECTORY NUMBER [NAME=VALUE…] PROGRAM [ARGUMENT…]
job() {
  if [ -z "$slots" ]; then
    planned=$((planned + 4))
    make_slots $((planned - 3)) "$planned"
    add $((planned - 3)) "$planned"
  fi
  slot=${slots%% *} slots=${slots#* }
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
  readers='' woken='' started="started $id $slot $keeper"
  # Nobody dies of it who has no trap. bash can lose what it waits for when such a signal comes, so has none.
  if [ -n "$control" ]; then exec 5<>"$file.3"; else trap 'woken=1' URG; fi
  written
  before=$written
  [ -z "$control" ] || set -m
  (run "$@") 5>&1 <"$input" >"$file.1" 2>"$file.2" 6>&- 7<&- 8>&- 9<&- &
  program=$!
  [ -z "$control" ] || set +m
  exec 6>&- 8>&-
  attend # at once: a shell may say nothing of the death of one who was dead before it waited
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

# The program itself, in a process of its own. What is needed after the job's variables have been set has names that do
# not collide with them: those with a `_` in front are set by env.
run() {
  trap - PIPE
  [ -z "$control" ] || trap - INT QUIT
  process self
  printf '%s\n' "$pid" >"$file.pid"
  say "$started" >&5
  exec 5>&-
  umask 022
  _machine_n=$2 _machine_file=$file _machine_ifs=$ifs _machine_bash=$control _machine_applets=$applets
  _machine_start="$setsid $reset" _machine_setsid=$setsid
  cd -- "$1" 2>/dev/null || refuse "cwd: $1: no such directory"
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
  # Gone with what follows, unless that fails. But bash forgets its traps before.
  trap 'refuse "it cannot be executed"' EXIT
  [ -z "$_machine_bash" ] || exec "$@"
  # Where the shell has programs of its own that it takes for those of the same name, only a path is unmistakable.
  if [ -n "$_machine_applets" ] && [ -n "$_machine_path" ]; then
    shift
    set -- "$_machine_path" "$@"
  fi
  # shellcheck disable=SC2086 # each is empty where there is none
  case $1 in
    *=*) exec $_machine_setsid "$@" ;; # env would take it for a variable
    *) exec $_machine_start "$@" ;;
  esac
}

check() {
  _machine_path=''
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
          IFS=$_machine_ifs _machine_path=$_machine_d/$1
          return
        fi
      done
      refuse "$1: not found in PATH"
      ;;
  esac
}

refuse() {
  trap - EXIT
  printf '%.500s\n' "$1" >"$_machine_file.no"
  exit 127
}

# Wait until the program has ended. A signal that has a trap ends a wait early, with its own number, 128 + SIGURG.
attend() {
  [ -z "$control" ] || read_pipes
  while :; do
    wait "$program"
    status=$?
    [ -n "$woken" ] || break
    woken=''
    read_pipes
    [ "$status" -eq 151 ] || break
  done
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
  # What the program has written, to whatever files; two lines are ours.
  own=$((${#program} + 1 + ${#token} + 1 + ${#started} + 1)) due=0 silent=''
  [ "$before" -lt 0 ] || due=$((written - before - own))
  [ "$before" -lt 0 ] || [ "$due" -ne 0 ] || silent=1
  printf '%s\n' "$status $signal $left $due" >"$file.end"
  say ended "$id" "$slot" "$status" "$signal" "$left" "$why"
  out=0 err=0
  [ -z "$control" ] || printf '%s' "${silent:-0}${silent:-0}" >&5
  if [ -z "$silent" ] || [ -n "$readers" ] || ! glance out <&7 || ! glance err <&9; then
    trap '' URG
    read_pipes
    wait
    read -r out <"$file.out.n"
    read -r err <"$file.err.n"
    tell out "$out"
    tell err "$err"
  fi
  [ ! -e "$spool/$id.claim" ] || printf '%s\n' "$out $err" >"$file.count"
  say counted "$id" "$out" "$err"
}

# tell STREAM BYTES: a short output goes along, line by line, so that nobody has to open a file for it. A shell cannot
# hold a NUL: who reads this sees by the number of bytes whether it is all there.
tell() {
  [ "$2" -gt 0 ] && [ "$2" -le 512 ] || return
  while IFS= read -r line; do say "$1" "$id" "$line"; done <"$file.$1"
  [ -z "$line" ] || say "$1-end" "$id" "$line"
} 2>/dev/null

# Nothing has been written when the program ended, so here is just the end of the pipe. Else something that it left
# behind still has it, and may write. Not 0: that is so. To wait for it here would be wrong: it may write to the other.
glance() {
  woken='' line='' # busybox leaves it as it was when a signal comes
  # shellcheck disable=SC3045 # that is bash, which goes on reading when a signal has come
  if [ -n "$control" ]; then IFS= read -r -t 0.2 line; else IFS= read -r line; fi
  seen=$?
  [ "$seen" -ne 0 ] || line=$line$newline
  [ -z "$line" ] || printf '%s' "$line" >"$file.$1"
  [ -z "$line" ] && [ -z "$woken" ] && [ "$seen" -le 128 ]
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
  if [ -n "$control" ]; then
    # bash need not be told when, and each of the two gets one of the bytes that say whether there can be anything.
    # shellcheck disable=SC3045
    IFS= read -r -t 0.15 -N 1 silent <&5
    exec 5<&-
    [ "$silent" != 1 ] || ! glance "$1" || end=end
  fi
  [ ! -s "$part" ] || total=$(wc -c <"$part")
  # Small blocks first: each read counts as one however little it brings, and most programs write little.
  size=8192
  while [ -z "$end" ] && [ "$total" -lt "$kept" ]; do
    blocks=$(((kept - total + size - 1) / size))
    [ "$blocks" -le 128 ] || blocks=128
    statistics=$(LC_ALL=C dd bs=$size count="$blocks" 2>&1 >>"$part")
    understand
    [ "$total" -lt 65536 ] || size=65536
  done
  case $end in
    '' | failed)
      rest=$(wc -c)
      total=$((total + rest))
      ;;
  esac
  printf '%s\n' "$total" >"$part.n"
}

# dd says: "FULL+PARTIAL records in", the same of records out, and "BYTES bytes", after what went wrong.
understand() {
  # coreutils finds it odd that a pipe gives less than a block.
  case $statistics in 'dd: warning:'*) statistics=${statistics#*"$newline"} ;; esac
  case $statistics in dd:*) end=failed statistics=${statistics#*"$newline"} ;; esac
  full=${statistics%%+*} partial=${statistics#*+}
  partial=${partial%% *}
  case $statistics in
    *" bytes "*) bytes=${statistics##*records out"$newline"} bytes=${bytes%% *} ;;
    *) bytes=$(($(wc -c <"$part") - total)) ;; # some busybox do not say
  esac
  case $bytes$full$partial in
    '' | *[!0-9]*) # not a word: it was killed
      bytes=$(wc -c <"$part")
      total=$bytes end=failed
      return
      ;;
  esac
  total=$((total + bytes))
  if [ -n "$end" ]; then
    total=$((total + size * full - bytes / size * size)) # what it had read already
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
  status='' signal=0 left=0 due=0 out=- err=- why='' late=0
  [ ! -s "$file.end" ] || read -r status signal left due <"$file.end"
  [ ! -s "$file.count" ] || read -r out err <"$file.count"
  [ ! -s "$file.no" ] || IFS= read -r why <"$file.no"
  [ ! -e "$file.late" ] || late=1
  say state "$1" ended "$slot" "$kept" "${status:--}" "$signal" "$left" "$out" "$err" "$late" "$due" "$why"
}

# Have the pipes of a job read from now on.
watch() { ! find "$1" || ! alive || kill -URG "$keeper"; } 2>/dev/null

# signal ID NUMBER: to all of its process group, unless it has ended.
signal() {
  if find "$1" && ! [ -s "$spool/$slot.end" ] && read -r program <"$spool/$slot.pid"; then
    printf '%s\n' "$2" >"$spool/$slot.kill"
    # Before it has become the leader of a group, it is alone.
    kill "-$2" "-$program" || kill "-$2" "$program"
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
  [ -z "$filler" ] || wait "$filler"
  for entry in "$spool/$token"-*.1; do
    entry=${entry%.1}
    [ -e "$entry.say" ] || set -- "$@" "$entry.1" "$entry.2" "$entry.3" "$artifacts/${entry##*/}"
  done
  [ $# -eq 0 ] || rm -rf "$@"
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
      find "$id" && ! [ -s "$spool/$slot.count" ] && alive || continue
      kill -URG "$keeper" # have its pipes read
      if ! [ -s "$spool/$slot.end" ]; then
        left=1
        over=$((now - at - timeout - patience))
        [ "$over" -lt 0 ] || true >"$spool/$slot.late"
        if [ "$over" -ge 5 ]; then signal "$id" 9; elif [ "$over" -ge 0 ]; then signal "$id" 15; fi
      fi
    done
    [ "$left" -eq 0 ] || sleep 1
    read -r other <"$spool/guard"
  done
} >/dev/null 2>&1

# The first one since the guest was started. The home disk has more than the spool: nobody knows any more what of.
first() {
  [ -d "${spool%/*}" ] || mkdir -p "${spool%/*}"
  mkdir "$spool" || return # another was faster
  if [ -d "$artifacts" ] && mv "$artifacts" "$artifacts.$token"; then
    rm -rf "$artifacts".* </dev/null >/dev/null &
  fi
}

# serve SPOOL ARTIFACTS TOKEN PATIENCE
serve() {
  spool=$1 artifacts=$2 token=$3 patience=$4
  planned=0 slots='' filler='' ifs=$IFS control='' setsid='' applets='' reset=''
  newline='
'
  umask 077
  unset CDPATH MAIL SSH_CLIENT SSH_CONNECTION SSH_TTY XDG_SESSION_ID XDG_SESSION_TYPE XDG_SESSION_CLASS
  export LANG="${LANG:-C.UTF-8}"
  if [ -n "$BASH_VERSION" ]; then
    control=1
  else
    setsid=$(command -v setsid)
    case $setsid in
      setsid)
        applets=1
        for directory in /usr/bin /bin; do [ ! -x "$directory/setsid" ] || setsid=$directory/setsid; done
        ;;
      *)
        reset='/usr/bin/env --default-signal=INT,QUIT'
        $reset true || reset=''
        ;;
    esac
  fi >/dev/null 2>&1
  [ -d "$spool" ] || first
  trap '' PIPE
  exec 2>/dev/null
  say ready
  while IFS= read -r line; do eval "$line"; done
  guard
}

shift
serve "$@"
