# shellcheck shell=bash
# The rest is the same for every job; what differs is set above:
#   command, ray, await    how scalemine and Ray are called, and what waits for the nodes
#   launcher               srun, or none on one machine
#   shares                 a share of the corpus without Ray; 0: all of it, with Ray
#   cpus, gpus             of a node
#   folder, home, source   where the command runs; the job's folder; a file to read first
#   slot, restarts         where the ports begin, if it is not said by Slurm; how often to queue it again
set -euo pipefail
cd "$folder"
if [ -n "$source" ]; then
    # shellcheck source=/dev/null
    . "$source"
fi

mark=exit${SLURM_ARRAY_TASK_ID:+.$SLURM_ARRAY_TASK_ID}
number=${SLURM_JOB_ID:-$slot}
port=$((20000 + number % 1200 * 10))
asked='' driver='' temporary='' token=''
hosts=() started=()
rm -f -- "$home/$mark"

# The first that is asked for stays: out of time, or stopped by somebody.
on_signal() {
    asked=${asked:-$1}
    if [ -n "$driver" ]; then kill -s "$2" "$driver" 2>/dev/null || true; fi
}
trap 'on_signal time USR1' USR1
trap 'on_signal stop TERM' TERM INT

# The exit code of a process, also where signals interrupt the waiting.
wait_for() {
    local code last
    while :; do
        code=0
        wait "$1" || code=$?
        # Above 128 a signal ended it, or came to this shell.
        if [ "$code" -le 128 ]; then return "$code"; fi
        if ! kill -0 "$1" 2>/dev/null; then break; fi
    done
    last=0
    wait "$1" 2>/dev/null || last=$?
    if [ "$last" = 127 ]; then return "$code"; fi
    return "$last"
}

# Replaces the shell that calls it: so its process is the one to be ended.
launch() {
    local node=$1
    shift
    if [ "$launcher" = srun ]; then
        exec srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --nodelist="$node" "$@"
    fi
    exec "$@"
}

start_ray() {
    # On each node its own temporary folder, of a name that nobody can have made before.
    temporary=$(mktemp -d "$1/sm.XXXXXX")
    token=$home/token
    rm -f -- "$token"
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token")
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0
    export RAY_TMPDIR=$temporary

    local address=127.0.0.1 node
    if [ "$launcher" = srun ]; then
        mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
        address=${SCALEMINE_NODE_IP:-$(hostname -I | cut -d' ' -f1)}
    else
        hosts=(localhost)
    fi
    local options=(
        --block --log-color=false --disable-usage-stats --num-cpus="$cpus" --num-gpus="$gpus" --object-store-memory=1000000000
        --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=$((port + 1))
    )
    launch "${hosts[0]}" "${ray[@]}" start --head --node-ip-address="$address" --port="$port" \
        --ray-client-server-port=$((port + 2)) --include-dashboard=false --temp-dir="$temporary" "${options[@]}" &
    started+=($!)
    for node in "${hosts[@]:1}"; do
        launch "$node" "${ray[@]}" start --address="$address:$port" "${options[@]}" &
        started+=($!)
    done
    command+=(--set "compute.address=$address:$port")
    "${await[@]}" "$address:$port" "${#hosts[@]}" &
    local waiting=$!
    while kill -0 "$waiting" 2>/dev/null; do
        if [ -n "$asked" ] || ! kill -0 "${started[0]}" 2>/dev/null; then kill "$waiting" 2>/dev/null || true; fi
        sleep 0.2
    done
    wait "$waiting" || [ -n "$asked" ]
}

# Ends what this script started, by its process, and no other Ray of this user.
clean_up() {
    local code=$? pid node
    trap '' USR1 TERM INT
    trap - EXIT
    for pid in "${started[@]}"; do kill -s TERM "$pid" 2>/dev/null || true; done
    for _ in $(seq 150); do
        local alive=no
        for pid in "${started[@]}"; do if kill -0 "$pid" 2>/dev/null; then alive=yes; fi; done
        if [ "$alive" = no ]; then break; fi
        sleep 0.2
    done
    for pid in "${started[@]}"; do kill -s KILL "$pid" 2>/dev/null || true; done
    if [ -n "$token" ]; then rm -f -- "$token"; fi
    if [ -n "$temporary" ]; then
        for node in "${hosts[@]}"; do (launch "$node" rm -rf -- "$temporary") || true; done
    fi
    if [ "$code" = 75 ] && [ "$asked" = time ] && [ ! -e "$home/asked" ] && [ "$launcher" = srun ] &&
        [ "${SLURM_RESTART_COUNT:-0}" -lt "$restarts" ]; then
        echo "out of time: queued again, to go on"
        scontrol requeue "$SLURM_JOB_ID" && exit 75
    fi
    printf '%s\n' "$code" >"$home/.$mark" && mv -f -- "$home/.$mark" "$home/$mark"
    exit "$code"
}
trap clean_up EXIT

if [ "$shares" = 0 ]; then
    # Sockets lie in it, and their paths have at most 107 characters.
    short=${SLURM_TMPDIR:-/tmp}
    if [ "${#short}" -gt 30 ]; then short=/tmp; fi
    start_ray "$short"
else
    command+=(--share "$SLURM_ARRAY_TASK_ID/$shares")
fi
if [ -n "$asked" ]; then exit 75; fi
"${command[@]}" &
driver=$!
# What came between the two.
if [ -n "$asked" ]; then kill -s TERM "$driver" 2>/dev/null || true; fi
wait_for "$driver"
