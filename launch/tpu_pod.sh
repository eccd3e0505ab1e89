#!/usr/bin/env bash
# One run on a Cloud TPU VM or pod slice: makes the TPU or takes the one that is there, copies this
# repository, installs, runs on all workers, fetches the logs; starts again after a preemption.
#
#   launch/tpu_pod.sh --name N --zone Z --type T [options] -- --config FILE[:PRESET] [flags]
#
#   launch/tpu_pod.sh --name ssl1 --zone us-central1-a --type v5litepod-16 --queued --spot \
#     --setup 'sudo apt-get -qq install nfs-common && sudo mkdir -p /runs && sudo mount 10.0.0.2:/runs /runs' \
#     -- --config configs/simclr.py:imagenet --workdir /runs/simclr
#
# Needs: gcloud with a project and the right to make TPUs (`gcloud auth login`). For several workers,
# and to outlive a preemption, which takes the disks along: a --workdir that all workers see, such as
# a Filestore share that --setup mounts.
#
#   --name, --zone, --type   of the TPU (gcloud compute tpus accelerator-types list --zone Z)
#   --version V     runtime (default tpu-ubuntu2204-base; v5e: v2-alpha-tpuv5-lite, v6e: v2-alpha-tpuv6e)
#   --project P     (default: gcloud's)
#   --queued        ask for a queued resource of the same name, and wait until it is granted
#   --spot          preemptible
#   --setup CMD     run on every worker after the install
#   --fetch FOLDER  where the logs go (default: logs/N): the workdir without its checkpoints
#   --restarts R    at most (default 100)
#   --delete        the TPU, in the end; else it is left, and costs
#   --dry-run       (or DRY_RUN=1) prints the commands and touches nothing
#
# Run it from anywhere; SIGTERM and Ctrl-C are passed on to the workers, which save and end. Exit
# code: 0 finished, 143 asked to stop, 2 a mistake in the command, 1 it did not work.

set -u
say() { echo "tpu_pod.sh: $*" >&2; }
mistake() {
  say "$*"
  exit 2
}

help() { # the lines on top
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
}

name='' zone='' type='' project='' queued='' spot='' setup='' fetch='' delete=''
version=tpu-ubuntu2204-base restarts=100 dry=${DRY_RUN:-}
while (($#)); do
  case $1 in
    --) break ;;
    --queued) queued=1 ;;
    --spot) spot=1 ;;
    --delete) delete=1 ;;
    --help | -h) help ;;
    --dry-run) dry=1 ;;
    --name | --zone | --type | --version | --project | --setup | --fetch | --restarts)
      (($# > 1)) && [[ $2 != -- ]] || mistake "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    *) mistake "$1 is no option of tpu_pod.sh; flags of the run come after --" ;;
  esac
  shift
done
[[ ${1:-} == -- ]] && shift
(($#)) || mistake "what to run? … -- --config FILE[:PRESET]"
[[ -n $name && -n $zone && -n $type ]] || mistake "--name, --zone and --type say which TPU"
[[ $restarts =~ ^[0-9]+$ ]] || mistake "--restarts needs a number"
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || mistake "--name $name: a-z, 0-9 and -, a letter first"
fetch=${fetch:-logs/$name}

repository=$(cd "$(dirname "$0")/.." && pwd) || exit 1
jax=$(sed -n 's/^jax==//p' "$repository/requirements.txt")
workdir=runs
words=("$@")
for ((i = 0; i < ${#words[@]}; i++)); do
  case ${words[i]} in
    --workdir=*) workdir=${words[i]#*=} ;;
    --workdir) workdir=${words[i + 1]:-runs} ;;
  esac
done

place=("--zone=$zone")
[[ -z $project ]] || place+=("--project=$project")
tpus=(gcloud compute tpus)

do_() { # the command, or its text
  local word
  if [[ -z $dry ]]; then
    "$@"
    return
  fi
  for word; do
    [[ $word =~ ^[a-zA-Z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    printf '%s ' "$word"
  done
  echo
}

on() { # worker, command
  do_ "${tpus[@]}" tpu-vm ssh "$name" "${place[@]}" "--worker=$1" "--command=$2"
}

describe() { # tpu-vm or queued-resources, field: READY, PREEMPTED …; empty: there is none
  local text
  if text=$("${tpus[@]}" "$1" describe "$name" "${place[@]}" "--format=value($2)" 2>&1); then
    echo "${text##*$'\n'}"
  elif [[ ! $text =~ NOT_FOUND|[Nn]ot\ found ]]; then
    say "${text##*$'\n'}"
    echo unknown # the network, say: look again
  fi
}

create() {
  local more=()
  [[ -z $spot ]] || more+=(--spot)
  if [[ -n $queued ]]; then
    do_ "${tpus[@]}" queued-resources create "$name" "--node-id=$name" "${place[@]}" \
      "--accelerator-type=$type" "--runtime-version=$version" "${more[@]}"
  else
    do_ "${tpus[@]}" tpu-vm create "$name" "${place[@]}" \
      "--accelerator-type=$type" "--version=$version" "${more[@]}"
  fi
}

destroy() {
  if [[ -n $queued ]]; then # --force takes its TPU along
    do_ "${tpus[@]}" queued-resources delete "$name" "${place[@]}" --force --quiet
  else
    do_ "${tpus[@]}" tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

ready() { # makes the TPU, unless it is there; `fresh` says that it has to be installed
  local now request
  while ((!asked)); do
    now=$(describe tpu-vm state)
    [[ $now == unknown ]] || looked=1
    case $now in
      READY) return 0 ;;
      PREEMPTED | TERMINATED | STOPPED | DELETING | HIDING | HIDDEN)
        say "the TPU is gone: another"
        fresh=1
        destroy
        ;;
      unknown) ((looked)) || return 1 ;; # it never worked: no account, say
      '')
        fresh=1
        request=
        [[ -z $queued ]] || request=$(describe queued-resources state.state)
        case $request in
          '')
            create && continue
            ((tries)) || return 1 # later there may be room again
            ;;
          FAILED | SUSPENDED | SUSPENDING) destroy ;;
          *) say "queued: $request" ;;
        esac
        ;;
    esac
    sleep "$POLL"
  done
  return 0
}

install() {
  local archive=${TMPDIR:-/tmp}/ssl_jax-$name.tgz
  do_ tar -czf "$archive" --exclude=.git --exclude=./runs --exclude=./logs --exclude=.cache \
    --exclude=.venv -C "$repository" . &&
    do_ "${tpus[@]}" tpu-vm scp "$archive" "$name:ssl_jax.tgz" "${place[@]}" --worker=all &&
    on all "$INSTALL" && { [[ -z $setup ]] || on all "$setup"; }
  local code=$?
  do_ rm -f "$archive"
  return "$code"
}
# uv brings its own Python 3.11: the runtime's may be older.
INSTALL="mkdir -p ssl_jax && tar -xzf ssl_jax.tgz -C ssl_jax && python3 -m pip install -q --user uv \
&& python3 -m uv venv -q --allow-existing --python 3.11 ssl_jax_env && python3 -m uv pip install -q \
--python ssl_jax_env/bin/python -r ssl_jax/requirements.txt 'jax[tpu]==$jax'"

# What is left of an earlier start ends first: two runs in one workdir would disturb each other.
# shellcheck disable=SC2016 # $ is the worker's
END='if [ -f ssl_jax.pid ]; then p=$(cat ssl_jax.pid); for s in TERM KILL; do n=0; \
while [ $n -lt 60 ] && grep -qs ssl_jax.main /proc/$p/cmdline; do \
[ $n -gt 0 ] || kill -$s $p; n=$((n+1)); sleep 1; done; done; fi'
END=${END//\\$'\n'/}
# The worker's exit code stays in a file: gcloud does not pass it on for several workers.
RUN="rm -f ssl_jax.code; cd ssl_jax || exit 1; \
../ssl_jax_env/bin/python -m ssl_jax.main $(printf '%q ' "$@")& \
echo \$! > ../ssl_jax.pid; wait \$!; echo \$? > ../ssl_jax.code"
# shellcheck disable=SC2016
STOP='[ ! -f ssl_jax.pid ] || kill -TERM $(cat ssl_jax.pid)'

fetch_logs() {
  local tar
  tar="tar -C ssl_jax -czf - --exclude=checkpoints $(printf %q "$workdir")"
  if [[ -n $dry ]]; then
    on 0 "$tar"
    echo "  | tar -xzf - -C $fetch"
    return
  fi
  say "logs: $fetch"
  mkdir -p "$fetch"
  on 0 "$tar" | tar -xzf - -C "$fetch" || say "no logs came"
}

POLL=${POLL:-30} # seconds between two looks at the TPU
asked=0
looked=0
fresh=1
if [[ -n $dry ]]; then
  echo "# unless it is there and READY:"
  create
  echo "# then:"
  install
  on all "$END"
  on all "$RUN"
  on all 'cat ssl_jax.code'
  fetch_logs
  echo "# all codes 0: finished. 2: a mistake. Else: wait for the TPU, or when it is gone"
  destroy
  echo "# and all of it again, at most $restarts times; in the end, with --delete, the same."
  exit 0
fi
command -v gcloud >/dev/null || mistake "gcloud is not installed: https://cloud.google.com/sdk"

# shellcheck disable=SC2329 # the trap calls it
stop() {
  ((asked)) || say "asked to stop"
  asked=1
  on all "$STOP" </dev/null
}
trap stop TERM INT HUP

finish() { # exit code
  trap '' TERM INT HUP
  fetch_logs
  [[ -z $delete ]] || destroy
  exit "$1"
}

for ((tries = 0; tries <= restarts; tries++)); do
  ((!tries)) || say "restart $tries of $restarts"
  ready || {
    say "no TPU could be made"
    exit 1
  }
  ((!asked)) || finish 143
  if ((fresh)); then
    install || {
      say "the install failed"
      continue
    }
    fresh=0
  fi
  on all "$END"
  ((!asked)) || finish 143
  set -m # a process group of its own: Ctrl-C reaches the workers through `stop`
  on all "$RUN" </dev/null &
  running=$!
  set +m
  while kill -0 "$running" 2>/dev/null; do wait "$running"; done
  codes=$(on all 'cat ssl_jax.code' | sort -u | tr '\n' ' ')
  say "exit codes of the workers: ${codes:-none}"
  [[ $codes == '0 ' ]] && finish 0
  ((!asked)) || finish 143
  [[ " $codes" == *' 2 '* ]] && finish 2
done
say "ended after $restarts restarts"
finish 1
