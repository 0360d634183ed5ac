# A node: its namespaces, cable, fake GPUs, munge, slurmd; and what may befall it. Part of testbench.
#
# PID 1 of the node's PID namespace is its power switch: one SIGKILL ends slurmd and all ranks at once.

node_init() { # PID 1 of a node; bash reaps what is orphaned
  local name=$1 MUNGE gpu
  hostname "$name"
  private_mounts
  mkdir /run/dev
  for ((gpu = 0; gpu < GPUS; gpu++)); do mknod -m 666 "/run/dev/nvidia$gpu" c 1 3; done # as /dev/null; never opened
  ip link set lo up
  while ! ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
  ip addr add "$(address "$name")/24" dev eth0
  ip link set eth0 up
  ip route add default via "$NET.1"
  munge_command
  "${MUNGE[@]}" &
  while [ ! -S /run/munge/munge.socket.2 ]; do sleep 0.02; done
  SLURM_CONF=$BENCH/etc/slurm.conf slurmd
  touch /run/booted
  sleep infinity &
  wait $!
}

# The process that we remember is "unshare"; the node's PID 1 is its only child.
power_switch() { ps -o pid= --ppid "$(pid_of "$1")" 2>/dev/null | tr -d ' ' | grep .; }

in_node() { # in_node NODE CMD...
  local pid
  pid=$(power_switch "$1") || fail "$1" "is not running" "testbench node $1 start"
  shift
  nsenter -t "$pid" -m -u -i -n -p -- sh -c 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"' sh "$PWD" \
    env SLURM_CONF="$BENCH/etc/slurm.conf" "$@"
}

start_node() {
  local name=$1 ctl uptime
  pid_of "$name" >/dev/null && return 0
  ctl=$(pid_of ctl)
  mkdir -p "$BENCH/nodes/$name"
  # The node's own clock since boot starts at 0: slurmctld knows by it that a node was started anew.
  read -r uptime _ </proc/uptime
  local -a clock=(--time --boottime "-${uptime%.*}")
  unshare "${clock[@]}" --fork true 2>/dev/null || clock=()
  daemon "$name" unshare "${clock[@]}" --net --uts --mount --ipc --pid --fork --kill-child --mount-proc "$SELF" _node "$BENCH" "$name"
  until_ok 20 "$name" "$name" power_switch "$name"
  nsenter -t "$ctl" -n -- ip link del dev "v$name" 2>/dev/null || true # of a node that crashed a moment ago
  nsenter -t "$ctl" -n -- ip link add name "v$name" type veth peer name eth0 netns "$(power_switch "$name")"
  nsenter -t "$ctl" -n -- ip link set dev "v$name" master cluster up
}

start_slurmd() { # where it does not run
  in_node "$1" sh -c '[ ! -e /run/booted ] || kill -0 "$(cat /run/slurmd.pid 2>/dev/null)" 2>/dev/null || slurmd'
}

cable() { # cable NODE up|down
  pid_of "$1" >/dev/null || fail "$1" "is not running" "testbench node $1 start"
  nsenter -t "$(pid_of ctl)" -n -- ip link set dev "v$1" "$2"
}

mend_node() { # of a node that runs
  start_slurmd "$1"
  cable "$1" up
  if in_ctl sinfo -h -n "$1" -p normal -o %t | grep -q '^down$'; then in_ctl scontrol update "nodename=$1" state=resume; fi
}

crash_node() { # "unshare" ends when all processes of the namespace have
  local pid
  if pid=$(power_switch "$1"); then kill -KILL "$pid" 2>/dev/null || true; fi
  stop "$1" CONT 5
}

stop_nodes() { # also those beyond --nodes, of an earlier start
  local file
  for file in "$BENCH"/pids/node*; do
    [ ! -e "$file" ] || kill -KILL "$(power_switch "${file##*/}")" 2>/dev/null || true
  done
  for file in "$BENCH"/pids/node*; do [ ! -e "$file" ] || crash_node "${file##*/}"; done
}

all_registered() { # as slurmctld sees them; "*" marks a node that does not answer
  [ "$(in_ctl sinfo -h -N -p normal -o %t | grep -c -v -E '\*|down|unk|boot')" = "$NODES" ]
}

node_command() { # node_command NODE ACTION
  local name=$1
  case " $(nodes | tr '\n' ' ')" in *" $name "*) ;; *)
    fail "node $name" "there is none of that name" "one of: $(nodes | tr '\n' ' ')" ;;
  esac
  case $2 in
    crash) crash_node "$name" ;;
    start) start_node "$name" ;;
    slurmd-kill)
      in_node "$name" sh -c 'kill -KILL "$(cat /run/slurmd.pid)" && rm /run/slurmd.pid' 2>/dev/null ||
        fail "$name" "no slurmd runs there" "testbench node $name slurmd-start"
      ;;
    slurmd-start) start_slurmd "$name" ;;
    unplug) cable "$name" down ;;
    plug) cable "$name" up ;;
    *) fail "testbench node $name $2" "is no action" "one of: crash, start, slurmd-kill, slurmd-start, unplug, plug" ;;
  esac
}
