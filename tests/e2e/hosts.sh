#!/bin/bash
# Two hosts: network namespaces with a host name each, between which Open MPI moves bytes by TCP; the one file system is this
# machine's. What ranks on them train, who is named when one stands still, and that a run goes on elsewhere.
. "$(dirname "$0")/../lib.sh"
needs_ranks "two hosts"
export A=graft-a-$$ B=graft-b-$$ GRAFT_RANK_DEADLINE=8
remove_hosts() {
    ip netns del "$A" 2>/dev/null
    ip netns del "$B" 2>/dev/null
    rm -rf "$WORK"
}
trap remove_hosts EXIT
host() { # host NAME END ADDRESS: with one end of the line between them
    ip link set "$2" netns "$1" && ip -n "$1" addr add "$3/24" dev "$2" && ip -n "$1" link set "$2" up && ip -n "$1" link set lo up
}
if ! { ip netns add "$A" && ip netns add "$B" && ip link add "va$$" type veth peer name "vb$$" && host "$A" "va$$" 10.9.8.1 &&
    host "$B" "vb$$" 10.9.8.2 && ip netns exec "$A" unshare -u true; } 2>"$WORK/err.txt"; then
    skip "two hosts" "needs root, ip (Debian: iproute2) and network namespaces: $(head -n 1 "$WORK/err.txt")"
    finish
fi
cd "$WORK" || exit 1
cat >agent <<'E2'
#!/bin/sh
# in place of ssh: agent ADDRESS COMMAND...
case $1 in 10.9.8.1) at=$A ;; *) at=$B ;; esac
shift
exec ip netns exec "$at" unshare -u sh -c "hostname $at; exec sh -c '$*'"
E2
chmod +x agent
export OMPI_MCA_plm_rsh_agent=$WORK/agent OMPI_MCA_btl_tcp_if_include=10.9.8.0/24 OMPI_MCA_oob_tcp_if_include=10.9.8.0/24
cat >r.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {rank: 4, alpha: 8, dropout: 0.1}
data: {train: t.jsonl, eval: e.jsonl, max_length: 128}
train: {max_steps: 10, batch_size: 16, learning_rate: 3.0e-3}
eval: {every: 5}
Y
counting 150 t.jsonl
head -n 20 t.jsonl >e.jsonl
full=(adapter=null adapter.method=full train.learning_rate=3e-4 train.sharding=zero2)
on_one() { env -u SHELLOPTS timeout 120 mpirun -n 4 "$GRAFT" train r.yaml "$@" >said.txt 2>err.txt; }
on_two() { # 2 ranks on each
    # shellcheck disable=SC2016
    env -u SHELLOPTS timeout 120 ip netns exec "$A" unshare -u sh -c 'hostname "$A"; exec "$@"' - mpirun -n 4 \
        --host 10.9.8.1:2,10.9.8.2:2 -x GRAFT_MPI_LIB -x GRAFT_RANK_DEADLINE "$GRAFT" train r.yaml "$@" >said.txt 2>err.txt
}
on_two output_dir=lora2 data.cache=cache
check "an adapter on two hosts" test $? = 0
check "with two ranks on each" grep -qx 'ranks: 4, 2 of them on this host; this is rank 0' lora2/run.log
check "one token cache for train and one for eval, of both" test "$(ls cache/*.tokens/index.h5 | wc -l)" = 2
on_one output_dir=lora1 data.cache=none
check "has the bits that it has on one" same {lora1,lora2}/adapter/adapter_model.safetensors
on_two output_dir=full2 "${full[@]}"
on_one output_dir=full1 "${full[@]}"
check "and so have all weights with zero2" same {full1,full2}/model/model.safetensors

# ---- one of the other host stands still ----
on_two output_dir=still "${full[@]}" train.max_steps=20000 train.lr_scheduler=constant eval.every=20000 save.every=20 &
job=$!
until ls -d still/checkpoint-* >/dev/null 2>&1 || ! kill -0 $job; do sleep 0.05; done
for pid in $(pgrep -f "^$GRAFT train r.yaml output_dir=still"); do
    { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | grep -x OMPI_COMM_WORLD_RANK=3 >/dev/null && break
done
kill -STOP "$pid"
wait $job
check "it ends" test $? != 0
kill -KILL "$pid" 2>/dev/null
if [ "$(grep -c '^graft: ' err.txt)" = 1 ] &&
    grep -qE "^graft: error: rank 3 \($B, process $pid\) was not heard of for 8 s, seen by rank [0-2] in " err.txt; then
    ok "and is named, with its host"
else not_ok "and is named, with its host" "rank 3, process $pid" err.txt; fi
step=$(ls -d still/checkpoint-* | sed 's/.*-//' | sort -n | tail -n 1)
on_one output_dir=still "${full[@]}" train.max_steps=20000 train.lr_scheduler=constant eval.every=20000 save.every=20 --resume &
job=$!
until ls -d "still/checkpoint-$((step + 20))" >/dev/null 2>&1 || ! kill -0 $job; do sleep 0.05; done
check "the run goes on, on one host" test -d "still/checkpoint-$((step + 20))"
pkill -KILL -f "^$GRAFT train r.yaml output_dir=still"
wait $job
finish
