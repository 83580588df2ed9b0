#!/bin/bash
# up.sh DIR: bring up a REAL Slurm (munged [+ mariadbd + slurmdbd] + slurmctld + N x slurmd) on loopback,
# as root, without systemd, cgroups or docker.  Everything lives under DIR.
# Knobs (environment):
#   NODES=2 CPUS=2 MEM=32768(MiB) GPUS=0   per virtual node; may exceed the real machine (config_overrides)
#   ACCT=1       1: slurmdbd + MariaDB, so that `sacct` (which submitit polls) works; 0: no accounting
#   FIRST=1      number of the first job
#   PORT=27817   slurmctld; +i = slurmd of node i; +100 = slurmdbd; +101 = mariadbd
# Debian 12: apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge \
#            slurmdbd mariadb-server-core          (the last two only for ACCT=1)
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DIR=${1:?the folder of the cluster}
NODES=${NODES:-2} CPUS=${CPUS:-2} MEM=${MEM:-32768} GPUS=${GPUS:-0} ACCT=${ACCT:-1} PORT=${PORT:-27817} FIRST=${FIRST:-1}
HOST=$(hostname -s)          # slurmctld refuses to start unless SlurmctldHost matches this name
t0=$(date +%s%N); ms() { echo $(( ($(date +%s%N) - t0) / 1000000 ))ms; }
die() { echo "up.sh: $*" >&2; tail -n 15 "$DIR"/log/*.log >&2 2>/dev/null || true; exit 1; }
wait_for() { local what=$1 end=$((SECONDS+60)); shift; until timeout 5 "$@" >"$DIR/wait.out" 2>&1; do [ $SECONDS -lt $end ] || { cat "$DIR/wait.out" >&2; die "timed out: $what"; }; sleep 0.1; done; echo "  $what: $(ms)"; }

[ "$(id -u)" = 0 ] || { echo "must be root" >&2; exit 2; }
for b in munged slurmctld slurmd sbatch; do command -v $b >/dev/null || { echo "missing $b" >&2; exit 2; }; done
[ -s "$DIR/slurmctld.pid" ] && kill -0 "$(cat "$DIR/slurmctld.pid")" 2>/dev/null && { echo "already up in $DIR" >&2; exit 1; }
rm -rf "$DIR"; mkdir -p "$DIR"/{munge,state,spool,log}
chmod 755 "$DIR" "$DIR"/{munge,state,spool,log}     # munged insists: no group/other write on the path (a sticky temporary folder is fine)

# ---- munge: private key + socket (a system-wide munge is neither needed nor touched)
( umask 077; head -c 128 /dev/urandom > "$DIR/munge/munge.key" )
munged --key-file="$DIR/munge/munge.key" --socket="$DIR/munge/munge.sock" --pid-file="$DIR/munge/munged.pid" \
       --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/munged.seed" --num-threads=2
wait_for munge test -S "$DIR/munge/munge.sock"

# ---- slurm.conf
ACCT_CONF='JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none'
[ "$ACCT" = 1 ] && ACCT_CONF="JobAcctGatherType=jobacct_gather/linux\nJobAcctGatherFrequency=1\nJobAcctGatherParams=OverMemoryKill\nAccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\nAccountingStoragePort=$((PORT+100))\\nAccountingStoragePass=$DIR/munge/munge.sock"   # Pass = the munge SOCKET to use for slurmdbd: AuthInfo is not consulted there
GRES_TYPES='# GresTypes: none'; GRES_NODE=
if [ "$GPUS" -gt 0 ]; then              # fake GPUs: must be CHARACTER DEVICES (aliases of /dev/null) or CUDA_VISIBLE_DEVICES is not set
  GRES_TYPES='GresTypes=gpu\nAccountingStorageTRES=gres/gpu'; GRES_NODE="Gres=gpu:$GPUS"; mkdir "$DIR/dev"
  for g in $(seq 0 $((GPUS-1))); do mknod "$DIR/dev/gpu$g" c 1 3; echo "Name=gpu File=$DIR/dev/gpu$g Flags=nvidia_gpu_env"; done > "$DIR/gres.conf"
fi
sed -e "s|@DIR@|$DIR|g; s|@HOST@|$HOST|g; s|@PORT@|$PORT|g; s|@FIRST@|$FIRST|; s|@GRES_TYPES@|$GRES_TYPES|; s|@ACCT@|$ACCT_CONF|" \
    "$HERE/slurm.conf.in" > "$DIR/slurm.conf"
cp /etc/hosts "$DIR/hosts"
names=()
for i in $(seq 1 "$NODES"); do
  n=node$i; a=127.0.0.$((10+i)); names+=("$n")
  echo "$a $n" >> "$DIR/hosts"
  # NodeAddr is numeric, so Slurm itself never has to resolve nodeI
  echo "NodeName=$n NodeHostname=$n NodeAddr=$a Port=$((PORT+i)) CPUs=$CPUS RealMemory=$MEM $GRES_NODE State=UNKNOWN" >> "$DIR/slurm.conf"
done
all=$(IFS=,; echo "${names[*]}")
cat >> "$DIR/slurm.conf" <<E
PartitionName=test Nodes=$all Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=$all MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
E
echo "export SLURM_CONF=$DIR/slurm.conf" > "$DIR/env.sh"; export SLURM_CONF=$DIR/slurm.conf
# a caller that is itself a Slurm job must not leak its identity
unset $(compgen -v | grep -E '^(SLURM|SLURMD|SBATCH|SRUN)_' | grep -v '^SLURM_CONF$') 2>/dev/null || true

# ---- accounting: MariaDB bootstrapped by hand (mariadb-server-core lacks my_print_defaults, which mariadb-install-db wants)
if [ "$ACCT" = 1 ]; then
  mkdir -p "$DIR/mysql" "$DIR/mysql-tmp"; S=/usr/share/mysql
  MY="--no-defaults --user=root --datadir=$DIR/mysql --tmpdir=$DIR/mysql-tmp --innodb-log-file-size=8M --innodb-buffer-pool-size=32M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900"
  { printf 'create database mysql;\nuse mysql;\nSET @auth_root_socket=NULL;\n'
    cat $S/mysql_system_tables.sql $S/mysql_system_tables_data.sql
    printf "flush privileges;\ncreate user 'slurm'@'127.0.0.1' identified by 'slurm';\ngrant all on *.* to 'slurm'@'127.0.0.1';\n"
  } | mariadbd $MY --bootstrap > "$DIR/log/mariadb-boot.log" 2>&1 || die "mariadb bootstrap"
  setsid mariadbd $MY --socket="$DIR/mysql/sock" --pid-file="$DIR/mariadbd.pid" --bind-address=127.0.0.1 --port=$((PORT+101)) \
     --skip-name-resolve > "$DIR/log/mariadbd.log" 2>&1 < /dev/null &
  wait_for mariadb test -S "$DIR/mysql/sock"
  # slurmdbd.conf: must be mode 600, in the same folder as slurm.conf
  ( umask 077; cat > "$DIR/slurmdbd.conf" <<E
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((PORT+100))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.sock
PidFile=$DIR/slurmdbd.pid
LogFile=$DIR/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT+101))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
CommitDelay=1
E
  )
  slurmdbd
  wait_for slurmdbd sacctmgr -n -P list cluster
  sacctmgr -i -Q add cluster test >/dev/null
fi

# ---- controller and node daemons (they daemonize themselves and write pid files)
slurmctld -c
wait_for slurmctld scontrol ping
for n in "${names[@]}"; do
  "$HERE/node.sh" "$DIR" "$n"
done
wait_for "nodes idle" bash -c '[ "$(sinfo -h -N -t idle -p test -o %N | sort -u | wc -l)" = "$0" ]' "$NODES"
echo "up: $all   source $DIR/env.sh"
