#!/bin/bash
# down.sh DIR: end exactly the daemons whose pid files lie in DIR, and with each node everything that runs on it.
for file in "${1:?the folder of the cluster}"/{node-*,slurmctld,slurmdbd,mariadbd,munge/munged}.pid; do
  [ -s "$file" ] || continue
  pid=$(cat "$file")
  case $(cat "/proc/$pid/comm" 2>/dev/null) in unshare|slurmctld*|slurmdbd*|mariadbd|munged) kill -9 "$pid";; esac
done
exit 0
