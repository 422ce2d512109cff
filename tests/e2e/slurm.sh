#!/bin/bash
# Slurm of this machine alone, started for the test: ranks that srun starts train what those of mpirun do, save when they are asked
# to, and name one that is killed. Needs Debian's slurmctld, slurmd and slurm-client, which tests/run does not install.
. "$(dirname "$0")/../lib.sh"
needs_ranks "Slurm"
for program in slurmctld slurmd srun; do
    command -v $program >/dev/null && continue
    echo "skip Slurm: needs $program (Debian: slurmctld, slurmd, slurm-client)"
    exit 77
done
cd "$WORK" || exit 1
host=$(hostname -s) user=$(id -un) port=$((20000 + $$ * 2 % 20000))
export SLURM_CONF=$WORK/slurm.conf
mkdir state spool
cat >slurm.conf <<C
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/none
CredType=cred/none
SlurmUser=$user
SlurmdUser=$user
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
StateSaveLocation=$WORK/state
SlurmdSpoolDir=$WORK/spool
SlurmctldPidFile=$WORK/slurmctld.pid
SlurmdPidFile=$WORK/slurmd.pid
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=8
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
C
slurmctld -D >slurmctld.log 2>&1 &
slurmd -D >slurmd.log 2>&1 &
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$WORK"' EXIT
for _ in $(seq 100); do
    sinfo -h -o %t 2>/dev/null | grep -qx idle && break
    sleep 0.2
done
if ! sinfo -h -o %t 2>/dev/null | grep -x idle >/dev/null; then
    skip "Slurm" "it does not start here: $(grep -h -m 1 -iE 'error|fatal' slurmctld.log slurmd.log | head -n 1)"
    finish
fi
ranks() { # ranks N COMMAND...
    local n=$1
    shift
    env -u SHELLOPTS timeout 120 srun --mpi=pmix -n "$n" "$@"
}
cat >r.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {rank: 4, alpha: 8, dropout: 0.1}
data: {train: t.jsonl, max_length: 128, cache: none}
train: {max_steps: 10, batch_size: 16, learning_rate: 3.0e-3}
Y
counting 150 t.jsonl
weights=adapter/adapter_model.safetensors
check "srun starts ranks" ranks 3 "$GRAFT" train r.yaml output_dir=srun
check "of one host" grep -q '^ranks: 3, 3 of them on this host; this is rank 0' srun/run.log
check "mpirun starts as many" env -u SHELLOPTS timeout 120 mpirun -n 3 "$GRAFT" train r.yaml output_dir=mpirun
check "they train the same" same srun/$weights mpirun/$weights
refused "without PMIx they do not find each other" 2 "one of 2 ranks: srun has started them so that they cannot find each other" \
    env -u SHELLOPTS srun --mpi=none -n 2 "$GRAFT" train r.yaml output_dir=none

until_step() { # until_step FOLDER N
    for _ in $(seq 300); do
        [ "$(sed -nE '$s/.*"step": ([0-9]+).*/\1/p' "$1/metrics.jsonl" 2>/dev/null || echo 0)" -ge "$2" ] 2>/dev/null && return
        sleep 0.1
    done
    not_ok "$1 came to step $2" "not within 30 s" err.txt
}
long=(train.max_steps=100000 save.every=100000 log.every=1 train.lr_scheduler=constant)
SLURM_JOB_NAME=asked ranks 3 "$GRAFT" train r.yaml output_dir=asked "${long[@]}" >said.txt 2>err.txt &
until_step asked 5
scancel -s USR1 -n asked
wait $!
check "SIGUSR1 to the job: exit code 130" test $? = 130
check "all have saved" grep -q '^graft: interrupted: at step .*, saved in asked/checkpoint-' err.txt
check "and go on" ranks 3 "$GRAFT" train r.yaml output_dir=asked --resume "${long[@]}" \
    "train.max_steps=$(($(sed -nE 's/^graft: interrupted: at step ([0-9]+) of.*/\1/p' err.txt) + 3))"

ranks 3 "$GRAFT" train r.yaml output_dir="$WORK/killed" "${long[@]}" >said.txt 2>err.txt &
until_step killed 5
pkill -KILL -n -f "^$GRAFT train r.yaml output_dir=$WORK/killed"
wait $!
check "one that is killed ends all" test $? != 0
check "and is named, once" test "$(grep -c '^graft: error: rank . (.*) is gone, seen by rank . in ' err.txt)" = 1
finish
