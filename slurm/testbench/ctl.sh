# The login host "ctl": its namespaces, the network, munge, accounting, slurmctld. Part of testbench.
#
# It keeps the machine's PID namespace, so that a command which enters it has an ordinary PID and gets signals directly.
# The bridge of the cluster lives in it: the machine's own network is not touched.

in_ctl() { # run a command there, in the same folder; no fork, so signals reach it
  local pid
  pid=$(pid_of ctl) || broken "the testbench at $BENCH is down"
  nsenter -t "$pid" -m -u -i -n -- sh -c 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"' sh "$PWD" \
    env SLURM_CONF="$BENCH/etc/slurm.conf" "$@"
}

private_mounts() { # what every host has for itself; all else is shared, as home folders are on a cluster
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/munge /run/lock
  touch /run/rumpun-testbench # the shims know by it that they are on a host of a bench
  case $BENCH in
    /dev/shm/*) # the bench itself stays shared
      mkdir /run/bench
      mount --bind "$BENCH" /run/bench
      mount -t tmpfs -o mode=1777 tmpfs /dev/shm
      mkdir -p "$BENCH"
      mount --move /run/bench "$BENCH"
      ;;
    *) mount -t tmpfs -o mode=1777 tmpfs /dev/shm ;;
  esac
  mount -t sysfs sysfs /sys 2>/dev/null || true # shows this namespace's network cards
  mount --bind "$BENCH/etc/hosts" /etc/hosts
  if [ -e /etc/resolv.conf ]; then mount --bind "$BENCH/etc/resolv.conf" "$(readlink -f /etc/resolv.conf)" 2>/dev/null || true; fi
}

munge_command() { # /run is private, so the usual place of the socket is too
  install -m 600 "$BENCH/etc/munge.key" /run/munge/key
  MUNGE=(munged --foreground --key-file=/run/munge/key --socket=/run/munge/munge.socket.2 --num-threads=2
    --pid-file=/run/munge/munged.pid --seed-file=/run/munge/seed --log-file=/run/munge/munged.log)
}

ctl_init() { # becomes the process that keeps the namespaces
  local MUNGE
  hostname ctl
  private_mounts
  ip link set lo up
  ip link add name cluster type bridge
  ip addr add "$NET.1/24" dev cluster
  ip link set cluster up
  munge_command
  daemon munged "${MUNGE[@]}"
  while [ ! -S /run/munge/munge.socket.2 ]; do
    pid_of munged >/dev/null || exit 1
    sleep 0.02
  done
  touch /run/ready
  exec sleep infinity 9>&-
}

start_ctl() {
  pid_of ctl >/dev/null && return 0
  end_all # nothing lives on without the login host, whose network it was in
  daemon ctl unshare --net --uts --mount --ipc "$SELF" _ctl "$BENCH"
  until_ok 20 "the login host" ctl in_ctl test -e /run/ready -a -e /run/rumpun-testbench
}

start_accounting() {
  [ "$ACCOUNTING" = yes ] || return 0
  local data=$BENCH/database socket=/run/mysqld.sock ctl
  ctl=$(pid_of ctl)
  if ! pid_of mariadbd >/dev/null; then
    if [ ! -e "$data/made" ]; then
      rm -rf "$data"
      mkdir "$data"
      mariadb-install-db --no-defaults --user=root --datadir="$data" --skip-test-db --skip-name-resolve \
        --auth-root-authentication-method=socket --auth-root-socket-user=root >"$BENCH/log/mariadbd.out" 2>&1 ||
        broken "mariadb-install-db failed (log: $BENCH/log/mariadbd.out)"
      touch "$data/made"
    fi
    daemon mariadbd nsenter -t "$ctl" -m -u -i -n -- mariadbd --no-defaults --user=root --datadir="$data" \
      --socket="$socket" --skip-networking --pid-file=/run/mariadbd.pid --innodb-buffer-pool-size=64M \
      --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync \
      --skip-log-bin --performance-schema=OFF
    until_ok 60 "MariaDB" mariadbd in_ctl mariadb --no-defaults --socket="$socket" -e 'select 1'
  fi
  if ! pid_of slurmdbd >/dev/null; then
    daemon slurmdbd nsenter -t "$ctl" -m -u -i -n -- env MYSQL_UNIX_PORT="$socket" SLURM_CONF="$BENCH/etc/slurm.conf" slurmdbd -D
    until_ok 60 "slurmdbd" slurmdbd in_ctl sacctmgr -n -i show cluster
  fi
}

start_controller() {
  pid_of slurmctld >/dev/null && return 0
  daemon slurmctld nsenter -t "$(pid_of ctl)" -m -u -i -n -- env SLURM_CONF="$BENCH/etc/slurm.conf" slurmctld -D
  until_ok 30 "slurmctld" slurmctld in_ctl sh -c 'scontrol ping | grep -q UP'
}

add_account() { # an account "lab", with root in it: what sacctmgr shows of a user is then not empty
  if [ "$ACCOUNTING" != yes ] || [ -e "$BENCH/state/account" ]; then return 0; fi
  in_ctl sacctmgr -i -Q add account lab >/dev/null 2>&1 || true
  in_ctl sacctmgr -i -Q add user root account=lab >/dev/null 2>&1 || true
  touch "$BENCH/state/account"
}

expected_processes() {
  echo ctl munged slurmctld
  if [ "$ACCOUNTING" = yes ]; then echo mariadbd slurmdbd; fi
  nodes
}
