# Processes: started detached, remembered by PID and start time, ended by nobody else. Part of testbench.

say() { printf 'testbench: %s\n' "$*" >&2; }
fail() { # fail VALUE RULE FIX: a mistake that the user can mend
  local line="error: $1: $2. Fix: $3"
  printf '%s\n' "${line//$'\n'/ }" >&2
  exit 2
}
broken() { # broken TEXT: what should have worked did not
  printf 'error: %s\n' "$1" >&2
  exit 1
}

start_time() { # start_time PID: in ticks since boot; nothing where there is no such process, or only its zombie
  local line fields
  read -r line <"/proc/$1/stat" || return 0
  read -r -a fields <<<"${line##*) }" # the name in brackets may hold anything
  [ "${fields[0]}" = Z ] || echo "${fields[19]}"
} 2>/dev/null

remember() { # remember NAME PID
  printf '%s %s\n' "$2" "$(start_time "$2")" >"$BENCH/pids/$1.new"
  mv "$BENCH/pids/$1.new" "$BENCH/pids/$1"
}

pid_of() { # pid_of NAME: its PID, if it is alive and still the process that we started
  local pid began
  [ -s "$BENCH/pids/$1" ] || return 1
  read -r pid began <"$BENCH/pids/$1"
  [ -n "$began" ] && [ "$(start_time "$pid")" = "$began" ] && echo "$pid"
}

# daemon NAME CMD...: the process writes its own PID file before it becomes CMD, and keeps the lock (descriptor 9) until
# then: whenever this script is killed, "down" waits for what was begun, and finds it. The login host keeps the lock a
# little longer, see ctl_init. nice -10: daemons answer also where ranks use all CPUs.
daemon() {
  local name=$1
  shift
  rm -f "$BENCH/pids/$name"
  setsid bash -c '. "$1"; export RUMPUN_TESTBENCH=$2; BENCH=$2 name=$3; shift 3; remember "$name" $$
    [ "$name" = ctl ] || exec 9>&-
    exec "$@"' bash "$HERE/lib.sh" "$BENCH" "$name" nice -n -10 "$@" </dev/null >>"$BENCH/log/$name.out" 2>&1 &
  while [ ! -e "$BENCH/pids/$name" ]; do sleep 0.01; done
}

stop() { # stop NAME SIGNAL SECONDS: then SIGKILL
  local pid i
  if pid=$(pid_of "$1"); then
    kill -"$2" "$pid" 2>/dev/null || true
    for ((i = 0; i < $3 * 20; i++)); do
      pid_of "$1" >/dev/null || break
      sleep 0.05
    done
    while pid_of "$1" >/dev/null; do
      kill -KILL "$pid" 2>/dev/null || true
      sleep 0.05
    done
  fi
  rm -f "$BENCH/pids/$1"
}

# until_ok SECONDS WHAT NAME CMD...: wait until CMD succeeds. NAME is the log to read where it does not, and a process
# where there is a PID file of that name: when it has ended, nobody needs to wait.
until_ok() {
  local end=$((SECONDS + $1)) what=$2 name=$3 why
  shift 3
  until "$@" >/dev/null 2>&1; do
    [ -z "$INTERRUPTED" ] || exit 130
    why=''
    if [ -e "$BENCH/pids/$name" ] && ! pid_of "$name" >/dev/null; then why="$name has ended"; fi
    if ((SECONDS > end)); then why="waited in vain for $what"; fi
    if [ -n "$why" ]; then
      broken "$why; $(grep -ihE 'error|fatal' "$BENCH/log/$name.log" "$BENCH/log/$name.out" 2>/dev/null | tail -n 1) (logs: $BENCH/log)"
    fi
    sleep 0.05
  done
}

take_lock() { # one command at a time changes a bench
  [ -z "${LOCKED:-}" ] || return 0
  while :; do
    exec 9>"$BENCH/lock"
    flock -w 180 9 || fail "$BENCH" "another testbench command is at work there" "wait for it, or end it"
    if [ "$BENCH/lock" -ef /proc/$$/fd/9 ]; then break; fi # else purged while we waited
    mkdir -p "$BENCH"
  done
  LOCKED=yes
}
