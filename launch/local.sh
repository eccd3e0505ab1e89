#!/usr/bin/env bash
# One run in several processes on this machine: on CPU, or with one GPU each.
#
#   launch/local.sh N [--restarts R] [--dry-run] -- --config FILE[:PRESET] [flags of ssl_jax.main]
#
#   launch/local.sh 2 -- --config configs/quickstart.py
#   launch/local.sh 8 --restarts 50 -- --config configs/simclr.py:imagenet --workdir runs/simclr
#
# Needs: bash, and a Python that has ssl_jax (PYTHON=… names another than `python`).
#
# GPUs: process i gets the i-th of CUDA_VISIBLE_DEVICES, or of all that nvidia-smi lists; with
# JAX_PLATFORMS=cpu none. One process (N = 1) keeps them all.
#
# When a process dies, the others are ended and all start again: the run continues from its last
# checkpoint. At most R times (default 10). A mistake in the command (exit code 2) is not repeated.
# SIGTERM, SIGHUP and Ctrl-C are passed on as SIGTERM: the processes save and end, and nothing
# starts again; a second one is passed on as well.
#
# Exit code: 0 the run is finished; 143 it was asked to stop; 2 a mistake; else the code of the
# process that died once too often. --dry-run (or DRY_RUN=1) prints the commands and starts nothing.

set -u
GRACE_AFTER_DEATH=5  # seconds between SIGTERM and SIGKILL for those whose partner died
GRACE_AFTER_STOP=120 # seconds that the others may save on, once the first has stopped and saved

say() { echo "local.sh: $*" >&2; }
mistake() {
  say "$*"
  exit 2
}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then # the lines on top
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi
count=${1:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || mistake "how many processes? launch/local.sh N -- --config FILE"
shift
restarts=10
dry=${DRY_RUN:-}
while (($#)); do
  case $1 in
    --) shift && break ;;
    --dry-run) dry=1 ;;
    --restarts)
      restarts=${2:-}
      [[ $restarts =~ ^[0-9]+$ ]] || mistake "--restarts needs a number"
      shift
      ;;
    *) mistake "$1 is no option of local.sh; flags of the run come after --" ;;
  esac
  shift
done
(($#)) || mistake "what to run? launch/local.sh $count -- --config configs/quickstart.py"
python=${PYTHON:-python}

gpus=()
if [[ ${JAX_PLATFORMS:-} != cpu && $count -gt 1 ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    while read -r gpu; do gpus+=("$gpu"); done \
      < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | grep -x '[0-9]*')
  fi
  if ((${#gpus[@]} && ${#gpus[@]} < count)); then
    mistake "$count processes, but ${#gpus[@]} GPUs; start at most that many, or set JAX_PLATFORMS=cpu"
  fi
fi

if [[ -n $dry ]]; then
  for ((p = 0; p < count; p++)); do
    ((${#gpus[@]})) && printf 'CUDA_VISIBLE_DEVICES=%s ' "${gpus[p]}"
    printf '%q ' "$python" -m ssl_jax.main "$@"
    printf -- '--coordinator=localhost:PORT --processes=%s --process=%s &\n' "$count" "$p"
  done
  echo "# PORT: a free one. When one dies: end the others, start all again, at most $restarts times."
  exit 0
fi

pids=()
asked=0
forward() { # signal: to those that still run
  local p
  for p in "${!pids[@]}"; do
    [[ -n ${codes[p]:-} ]] || kill "-$1" "${pids[p]}" 2>/dev/null
  done
}
stop() {
  asked=1
  forward TERM
}
trap stop TERM INT HUP
trap 'forward TERM' EXIT

start() { # the arguments of the run
  local p port
  port=$("$python" -c 'import socket
s = socket.socket()
s.bind(("localhost", 0))
print(s.getsockname()[1])') || mistake "$python does not start; PYTHON=… names another"
  pids=()
  codes=()
  for ((p = 0; p < count; p++)); do
    set -m # a process group of its own: Ctrl-C reaches it once, through this script
    if ((${#gpus[@]})); then
      CUDA_VISIBLE_DEVICES=${gpus[p]} "$python" -m ssl_jax.main "$@" \
        --coordinator="localhost:$port" --processes="$count" --process="$p" </dev/null &
    else
      "$python" -m ssl_jax.main "$@" \
        --coordinator="localhost:$port" --processes="$count" --process="$p" </dev/null &
    fi
    pids[p]=$!
    set +m
  done
  say "started processes ${pids[*]}"
  ((!asked)) || forward TERM # it came in between
}

watch() { # waits for all; codes[p] are their exit codes, `first` the first that is not 0, or 0
  local p left now deadline=0
  first=0
  while :; do
    left=0
    now=0
    for p in "${!pids[@]}"; do
      [[ -z ${codes[p]:-} ]] || continue
      if kill -0 "${pids[p]}" 2>/dev/null; then
        left=$((left + 1))
        continue
      fi
      wait "${pids[p]}" 2>/dev/null
      codes[p]=$?
      if ((codes[p])); then
        say "process $p ended with code ${codes[p]}"
        # Of those that end together a mistake is the cause, the rest its consequence.
        if ((now == 0 || codes[p] == 2)); then now=${codes[p]}; fi
      fi
    done
    ((left)) || break
    if ((now && !deadline)); then
      if ((now == 143)); then # stopped and saved: so do the others, at the same step
        deadline=$((SECONDS + GRACE_AFTER_STOP))
      else
        ((asked)) || forward TERM
        deadline=$((SECONDS + GRACE_AFTER_DEATH))
      fi
    fi
    ((first)) || first=$now
    if ((deadline && SECONDS >= deadline)); then forward KILL; fi
    sleep 0.2
  done
  ((first)) || first=$now
}

for ((tries = 0; ; tries++)); do
  start "$@"
  watch
  ((first == 0)) && exit 0
  if ((asked)); then
    say "asked to stop; the same command continues"
    exit 143
  fi
  ((first == 2)) && exit 2
  if ((tries >= restarts)); then
    say "ended with code $first after $restarts restarts"
    exit "$first"
  fi
  say "restart $((tries + 1)) of $restarts"
  sleep 1
  ((!asked)) || exit 143
done
