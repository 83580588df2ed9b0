#!/bin/bash
# node.sh DIR NODE: start a node of the cluster in DIR, in its own UTS, mount and PID namespace: hostname NODE, a private
# /etc/hosts, and a first process that reaps orphans at once (zombies make Slurm drain the node: "Kill task failed").
# --kill-child: with the process in DIR/node-NODE.pid dies everything that runs on the node.
export SLURM_CONF=$1/slurm.conf
setsid unshare --uts --mount --pid --fork --kill-child --mount-proc sh -c \
  'hostname "$1" && mount --bind "$2/hosts" /etc/hosts && { slurmd -D -N "$1" & wait; }' - "$2" "$1" \
  >"$1/log/node-$2.log" 2>&1 </dev/null &
echo $! > "$1/node-$2.pid"
