#!/bin/bash
# Slurm on this machine alone, to try what is sent to it: all in one folder, on the loopback interface, no system service.
#   sudo apt-get install slurm-wlm munge
#   cluster/slurm/one_machine.sh start FOLDER      # then, as it says: export SLURM_CONF=FOLDER/slurm.conf
#   scalemine submit mine CONFIG --to slurm --profile FOLDER/profile.yaml
#   cluster/slurm/one_machine.sh stop FOLDER
# Jobs run as whoever starts it.
set -euo pipefail
umask 022

start() {
    mkdir -p "$folder"/{state,spool,log,munge}
    # munge wants folders that nobody else may write.
    chmod 700 "$folder/munge"
    [ -e "$folder/munge/key" ] || (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
    local name user cpus memory
    name=$(hostname -s)
    user=$(id -un)
    cpus=$(nproc)
    memory=$(($(getconf _PHYS_PAGES) * $(getconf PAGE_SIZE) / 1048576))
    cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$name(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
# A job that is queued again may start after cred_expire seconds.
AuthInfo=socket=$folder/munge/socket,cred_expire=10
CryptoType=crypto/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=${port:-26817}
SlurmdPort=$((${port:-26817} + 1))
SrunPortRange=$((${port:-26817} + 10))-$((${port:-26817} + 99))
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=5,batch_sched_delay=1
ReturnToService=2
KillWait=30
NodeName=$name NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$name Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
    printf 'cpus: %d\nmemory: %d\nthreads: 1\nhours: 1\n' "$cpus" $((memory * 3 / 4 / 1024)) >"$folder/profile.yaml"
    export SLURM_CONF=$folder/slurm.conf
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
        --log-file="$folder/log/munged" --seed-file="$folder/munge/seed" --num-threads=1
    slurmctld -c
    slurmd -c
    for _ in $(seq 50); do
        if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.2
    done
    echo "the node did not come up; see $folder/log" >&2
    exit 1
}

stop() {
    local file pid
    for file in slurmd.pid slurmctld.pid munge/pid; do
        if [ -e "$folder/$file" ]; then
            pid=$(cat "$folder/$file")
            kill "$pid" 2>/dev/null || true
            for _ in $(seq 50); do
                if ! kill -0 "$pid" 2>/dev/null; then break; fi
                sleep 0.2
            done
        fi
    done
}

case "${1:-} ${2:-}" in
"start "?* | "stop "?*)
    mkdir -p "$2"
    folder=$(cd "$2" && pwd)
    "$1"
    ;;
*)
    echo "usage: $0 start|stop FOLDER" >&2
    exit 2
    ;;
esac
