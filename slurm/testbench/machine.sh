# What the machine must have, and the folder of a bench; each lack is one line. Part of testbench.

PACKAGES="slurmctld slurmd slurm-client munge iproute2 util-linux procps"
ACCOUNTING_PACKAGES="slurmdbd mariadb-server-core mariadb-client-core"
CLIENTS="sbatch srun salloc scancel scontrol sinfo squeue sacct sacctmgr sstat sprio sattach sbcast"

packages() { if [ "$ACCOUNTING" = yes ]; then echo "$PACKAGES $ACCOUNTING_PACKAGES"; else echo "$PACKAGES"; fi; }

have() { [ -x "$(command -v "$1")" ]; } # bash also finds files that cannot be executed

need_machine() {
  [ "$(id -u)" = 0 ] || fail "user $(id -un)" \
    "the testbench needs root, for namespaces and virtual network cables" "sudo -E $SELF $COMMAND --at $BENCH"
}

need_programs() {
  local missing='' program
  for program in slurmctld slurmd munged $CLIENTS ip unshare nsenter ps; do
    have "$program" || missing="$missing $program"
  done
  if [ "$ACCOUNTING" = yes ]; then
    for program in slurmdbd mariadbd mariadb mariadb-install-db; do
      have "$program" || missing="$missing $program"
    done
  fi
  [ -z "$missing" ] || fail "programs$missing" "are missing" \
    "sudo apt-get install --no-install-recommends $(packages); or testbench up --install"
  unshare --net --uts --mount --ipc --pid --fork true 2>/dev/null ||
    fail "unshare" "this kernel or container allows no namespaces" "run it in a virtual machine, or a privileged container"
  unshare --net sh -c 'ip link add name probe0 type bridge && ip link add name probe1 type veth peer name probe2' 2>/dev/null ||
    fail "ip link add" "this kernel has no bridge or no veth" "modprobe bridge veth; or run it in a virtual machine"
}

install_packages() {
  local package missing=() log
  have apt-get || fail "apt-get" "is missing" "install what provides slurmctld, slurmd, slurmdbd, munged, mariadbd"
  for package in $(packages); do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  log=$(mktemp)
  if [ ! -e /usr/sbin/policy-rc.d ]; then # without it apt starts the daemons
    POLICY=/usr/sbin/policy-rc.d            # removed in the end
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
  fi
  set -- apt-get install -y -q -o DPkg::Lock::Timeout=120 --no-install-recommends "${missing[@]}"
  export DEBIAN_FRONTEND=noninteractive
  "$@" >"$log" 2>&1 </dev/null || { apt-get update -q && "$@"; } >>"$log" 2>&1 </dev/null ||
    fail "apt-get install" "failed: $(grep -m1 '^E:' "$log")" "read $log"
  rm -f "$log"
}

check_folder() {
  case $BENCH in
    *[!A-Za-z0-9_./-]*) fail "--at $BENCH" "slurm.conf takes no such characters" "a folder of letters, digits, . _ -" ;;
    / | /run/* | /proc/* | /sys/* | /dev/shm) fail "--at $BENCH" "is not shared by the nodes" "a folder in /tmp or below /dev/shm" ;;
  esac
}

claim_folder() { # nobody else's folder, and none that holds other things: purge removes it
  if [ -e "$BENCH" ]; then
    [ -d "$BENCH" ] && [ -O "$BENCH" ] || fail "--at $BENCH" "is not a folder of yours" "choose another one"
    [ -e "$BENCH/etc/settings" ] || [ -z "$(ls -A "$BENCH" | grep -v '^etc\.new\.')" ] ||
      fail "--at $BENCH" "holds other things" "choose an empty or a new folder"
  fi
  if [ ! -e "$BENCH/etc/settings" ]; then # at once, by a rename: an interrupted start leaves a bench or nothing
    mkdir -p "$BENCH/etc.new.$$" || fail "--at $BENCH" "cannot be written" "choose another folder"
    save_settings "$BENCH/etc.new.$$"
    mv -T "$BENCH/etc.new.$$" "$BENCH/etc" 2>/dev/null || rm -rf "$BENCH/etc.new.$$" # another "up" was first
  fi
  mkdir -p "$BENCH"/{log,pids,state,bin,nodes}
  chmod 755 "$BENCH"
}

need_bench() {
  [ -e "$BENCH/etc/settings" ] || fail "$BENCH" "no testbench lives there" "testbench up; or name its folder with --at DIR"
  need_machine
  [ -O "$BENCH" ] || fail "$BENCH" "belongs to someone else" "choose another folder with --at"
}

need_up() {
  need_bench
  pid_of ctl >/dev/null || fail "$BENCH" "the testbench is down" "testbench up"
}
