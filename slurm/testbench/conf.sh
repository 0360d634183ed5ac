# Settings of a bench, and the configuration files that follow from them. Part of testbench.

NODES=4 GPUS=2 CPUS=8 MEMORY_MB=16000 GRACE_S=20 ACCOUNTING=yes
declare -A CONF=()   # lines of slurm.conf that the user wants otherwise
declare -A WANTED=() # what the options of this call ask for, by the names above and CONF.KEY

read_settings() { # only those of a folder of ours: they end up in arithmetic, which bash evaluates
  local key value sum
  sum=$(printf %s "$BENCH" | cksum)
  sum=${sum%% *}
  NET=10.$((64 + sum / 256 % 64)).$((sum % 256)) # tells benches apart in logs; no bench can reach another
  [ -O "$BENCH" ] && [ -r "$BENCH/etc/settings" ] || return 0
  while IFS='=' read -r key value; do
    case $key in
      NODES | GPUS | CPUS | MEMORY_MB | GRACE_S | ACCOUNTING) declare -g "$key=$value" ;;
      CONF.*) CONF[${key#CONF.}]=$value ;;
    esac
  done <"$BENCH/etc/settings"
}

save_settings() { # save_settings FOLDER
  local key
  {
    for key in NODES GPUS CPUS MEMORY_MB GRACE_S ACCOUNTING; do echo "$key=${!key}"; done
    for key in "${!CONF[@]}"; do echo "CONF.$key=${CONF[$key]}"; done
  } >"$1/settings.new"
  mv "$1/settings.new" "$1/settings"
}

setting() { # setting OPTION VALUE: check an option of "up", and note it in WANTED
  local option=$1 value=$2 name key
  name=${option#--} name=${name//-/_} name=${name^^}
  case $option in
    --accounting) case $value in yes | no) ;; *) fail "$option $value" "must be yes or no" "$option yes" ;; esac ;;
    --slurm-conf)
      key=${value%%=*} name=CONF.$key
      case $value in *$'\n'*) key='' ;; *=*) ;; *) key='' ;; esac
      case $key in
        '' | *[!A-Za-z0-9]* | NodeName | PartitionName | ClusterName)
          fail "$option $value" "must be KEY=VALUE, one line of slurm.conf" "$option SlurmdTimeout=5" ;;
      esac
      value=${value#*=}
      ;;
    *)
      case $value in '' | *[!0-9]*) fail "$option $value" "must be a whole number" "testbench help" ;; esac
      [ ${#value} -lt 8 ] || fail "$option $value" "is too large" "testbench help"
      value=$((10#$value))
      case $option in
        --nodes) ((value >= 1 && value <= 200)) || fail "$option $value" "must be 1 to 200" "$option 4" ;;
        --gpus) ((value <= 64)) || fail "$option $value" "must be 0 to 64" "$option 2" ;;
        --cpus | --memory-mb) ((value >= 1)) || fail "$option $value" "must be 1 or more" "$option 8" ;;
      esac
      ;;
  esac
  WANTED[$name]=$value
}

settle() { # the settings of the folder, changed by those of this call; CHANGED says which
  local key
  CHANGED=''
  read_settings
  for key in "${!WANTED[@]}"; do
    case $key in
      CONF.*)
        if [ "${CONF[${key#CONF.}]-none}" != "${WANTED[$key]}" ]; then CHANGED="$CHANGED ${key#CONF.}=${WANTED[$key]}"; fi
        CONF[${key#CONF.}]=${WANTED[$key]}
        ;;
      *)
        if [ "${!key}" != "${WANTED[$key]}" ]; then CHANGED="$CHANGED $key=${WANTED[$key]}"; fi
        declare -g "$key=${WANTED[$key]}"
        ;;
    esac
  done
}

nodes() {
  local i
  for ((i = 1; i <= NODES; i++)); do echo "node$i"; done
}
address() { echo "$NET.$((10 + ${1#node}))"; }

write_configuration() {
  local node
  save_settings "$BENCH/etc"
  if [ ! -s "$BENCH/etc/munge.key" ]; then (umask 077 && head -c 128 /dev/urandom >"$BENCH/etc/munge.key"); fi
  {
    echo "127.0.0.1 localhost"
    echo "$NET.1 ctl"
    for node in $(nodes); do echo "$(address "$node") $node"; done
  } >"$BENCH/etc/hosts"
  : >"$BENCH/etc/resolv.conf" # names come from hosts; anything else fails at once
  slurm_conf >"$BENCH/etc/slurm.conf.new"
  mv "$BENCH/etc/slurm.conf.new" "$BENCH/etc/slurm.conf"
  : >"$BENCH/etc/gres.conf"
  if ((GPUS > 0)); then # GPUs without device files would leave CUDA_VISIBLE_DEVICES empty
    echo "NodeName=node[1-$NODES] Name=gpu Type=fake File=/run/dev/nvidia[0-$((GPUS - 1))] Flags=nvidia_gpu_env" >"$BENCH/etc/gres.conf"
  fi
  # slurmd loads a cgroup plugin even where nothing uses cgroups, and "autodetect" fails without /sys/fs/cgroup.
  case $(slurmd -V) in *" 22."* | *" 21."* | *" 20."*) echo "CgroupPlugin=cgroup/v1" ;; *) echo "CgroupPlugin=disabled" ;; esac >"$BENCH/etc/cgroup.conf"
  rm -f "$BENCH/etc/slurmdbd.conf"
  (umask 077 && slurmdbd_conf >"$BENCH/etc/slurmdbd.conf")
  write_shims
}

slurm_conf() { # the lines that the user gave replace ours of the same key
  local line key
  while IFS= read -r line; do
    key=${line%%=*}
    [ -n "${CONF[$key]+set}" ] || printf '%s\n' "$line"
  done < <(slurm_conf_lines)
  for key in "${!CONF[@]}"; do [ -z "${CONF[$key]}" ] || printf '%s=%s\n' "$key" "${CONF[$key]}"; done
}

slurm_conf_lines() {
  cat <<CONF
ClusterName=testbench
SlurmctldHost=ctl($NET.1)
SlurmUser=root
SlurmdUser=root
MailProg=/bin/true
AuthType=auth/munge
# How long a job's credential holds, which is also how long a requeued job waits; 120 s unless told.
AuthInfo=cred_expire=5
StateSaveLocation=$BENCH/state
SlurmdSpoolDir=$BENCH/nodes/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=$BENCH/log/slurmctld.log
SlurmdLogFile=$BENCH/log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
# No cgroups, no binding to CPUs: the nodes share one machine.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
PropagateResourceLimits=NONE
# The daemons run with a better priority than the ranks they start.
PropagatePrioProcess=1
SlurmdParameters=config_overrides
# Timers as short as they go on a busy machine.
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
InactiveLimit=0
KillWait=5
MinJobAge=600
UnkillableStepTimeout=15
ReturnToService=2
Waittime=0
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,bf_continue,batch_sched_delay=0,preempt_strict_order,preempt_reorder_count=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
PriorityType=priority/multifactor
PriorityWeightAge=1
PriorityWeightPartition=1000
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CONF
  if [ "$ACCOUNTING" = yes ]; then
    echo "AccountingStorageType=accounting_storage/slurmdbd"
    echo "AccountingStorageHost=$NET.1"
    echo "AccountingStorageTRES=gres/gpu"
  fi
  local node gres='' rack
  if ((GPUS > 0)); then gres=" Gres=gpu:fake:$GPUS"; fi
  for node in $(nodes); do
    rack=rack1
    if ((${node#node} > (NODES + 1) / 2)); then rack=rack2; fi
    echo "NodeName=$node NodeAddr=$(address "$node") CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS" \
      "ThreadsPerCore=1 RealMemory=$MEMORY_MB$gres Feature=$rack State=UNKNOWN"
  done
  echo "PartitionName=DEFAULT Nodes=node[1-$NODES] MaxTime=INFINITE DefaultTime=10 State=UP DefMemPerCPU=100"
  echo "PartitionName=normal Default=YES PriorityTier=5 PreemptMode=OFF"
  echo "PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=$GRACE_S"
  echo "PartitionName=high PriorityTier=10 PreemptMode=OFF"
}

slurmdbd_conf() {
  cat <<CONF
DbdHost=ctl
DbdAddr=$NET.1
AuthType=auth/munge
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
LogFile=$BENCH/log/slurmdbd.log
PidFile=/run/slurmdbd.pid
DebugLevel=info
CONF
}

# SLURM's commands for the machine itself: each becomes the real one inside the login host, by exec alone, so that
# signals and exit codes are the command's own. Jobs inherit PATH: on a node the same shim is the plain command.
write_shims() {
  local client real
  cat >"$BENCH/bin/.enter" <<SH
#!/bin/sh
read -r pid _ 2>/dev/null <"$BENCH/pids/ctl" && [ -e "/proc/\$pid" ] || {
  echo "error: $BENCH: the testbench is down. Fix: rumpun testbench up --at $BENCH" >&2
  exit 1
}
exec nsenter -t "\$pid" -m -u -i -n -- sh -c 'cd "\$1" 2>/dev/null || cd /; shift; exec "\$@"' sh "\$PWD" \\
  env SLURM_CONF="$BENCH/etc/slurm.conf" "\$@"
SH
  for client in $CLIENTS; do
    real=$(command -v "$client")
    printf '#!/bin/sh\n[ -e /run/rumpun-testbench ] && exec %s "$@"\nexec %s %s "$@"\n' "$real" "$BENCH/bin/.enter" "$real" >"$BENCH/bin/$client"
  done
  chmod 755 "$BENCH/bin/.enter" "$BENCH"/bin/*
}
