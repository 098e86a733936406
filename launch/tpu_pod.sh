#!/usr/bin/env bash
# Trains on Cloud TPU VMs: one TPU, a pod of many hosts, or several slices.
#
#   launch/tpu_pod.sh COMMAND [flags] [-- flags of deit_jax.main]
#
#   create   asks for the TPU
#   setup    waits until it is there, copies the last commit to every worker, installs it
#   start    starts `python -m deit_jax.main` with what follows --, on all workers
#   tail     follows the log of worker 0, with --all of all workers
#   resume   looks how the training is: what was lost is started again, on a TPU made anew where that was taken away
#   stop     ends the training, which saves; the TPU stays, and costs
#   delete   gives the TPU back
#
# resume ends in 75 while there is something to come back for, so that this looks every ten minutes until it is over:
#   launch/supervise.sh --tries=10000 --pause=600 -- launch/tpu_pod.sh resume [flags] -- [flags of deit_jax.main]
# It ends in 0 where the run is done or was ended by stop, in 2 where the run was refused or the TPU deleted, in 1 where
# the run failed.
#
#   --name=NAME        of the TPU
#   --zone=ZONE        such as us-west4-a
#   --project=PROJECT  where it is not gcloud's default
#   --type=TYPE        accelerator type: v4-32, v5litepod-256, v5p-64, v6e-256
#   --runtime=VERSION  of the TPU's software, where the type's default is not wanted
#   --spot             at a lower price, and taken away at any time
#   --reserved         from a reservation
#   --queued           a queued resource: the request waits until there is room
#   --slices=N         N TPUs of this type as one machine; always queued
#   --create=FLAG      passed on to gcloud's create, such as --create=--network=NAME; again for more
#   --extra=NAME       setup and resume: another extra of this package, such as wandb; again for more
#   --module=NAME      start and resume: what is started instead of deit_jax.main, such as deit_jax.precompute
#   --env=NAME=VALUE   start and resume: a variable of the workers' environment; again for more
#   --all              tail: all workers
#   --dry-run          prints every command, and runs none
#
# Flags that stay the same can be in the variable TPU_POD. On the workers launch/supervise.sh keeps the training running
# when this connection is gone, and starts it again on exit status 75 and 134.
set -euo pipefail
shopt -s extglob # which the bash of macOS wants to be told before it reads on
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failure=2
fail() {
  echo "error: $*" >&2
  exit "$failure"
}

# What a worker does first where it must not disturb: launch/supervise.sh holds this lock.
# shellcheck disable=SC2016 # for the worker's shell
busy='flock --nonblock ~/train.log.pid true || exec echo "$(hostname): training is running"'
# What a worker tells of its training: that it runs, was stopped, or ended in some exit status, which the supervisor
# writes last; lost is what has left no such line.
# shellcheck disable=SC2016
how='if ! flock --nonblock train.log.pid true; then end=running
elif [ -e train.log.stop ]; then end=stopped
else end=$(tail -n 1 train.log 2>/dev/null | sed -n "s/^supervise: .*: exit status //p"); fi
echo "training on $(hostname): ${end:-lost}"'

name='' zone='' project='' type='' runtime='' slices=1 capacity='' kind=tpu-vm all='' dry_run=''
extras=tpu,gcs module=deit_jax.main create=() environment=() training=()

parse() {
  while (($#)); do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --runtime=*) runtime=${1#*=} ;;
      --spot | --reserved)
        [[ ! $capacity || $capacity == "$1" ]] || fail "$capacity $1: give one of the two"
        capacity=$1 ;;
      --queued) kind=queued-resources ;;
      --slices=*) slices=${1#*=} ;;
      --create=*) create+=("${1#*=}") ;;
      --extra=?*) extras+=,${1#*=} ;;
      --module=*) module=${1#*=} ;;
      --env=*) environment+=("${1#*=}") ;;
      --all) all=1 ;;
      --dry-run) dry_run=1 ;;
      --) shift && training=("$@") && break ;;
      --name | --zone | --project | --type | --runtime | --slices | --create | --extra?(=) | --module | --env)
        fail "${1%=}: no value; give it as ${1%=}=VALUE" ;;
      *) fail "$1: unknown flag; launch/tpu_pod.sh --help names them, deit_jax.main's come after --" ;;
    esac
    shift
  done
  [[ $name ]] || fail "--name: missing; name the TPU"
  [[ $zone ]] || fail "--zone: missing; name the zone, such as --zone=us-west4-a"
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$name: give small letters, digits and -, such as deit-1"
  [[ $zone =~ ^[a-z]+(-[a-z0-9]+)+$ ]] || fail "--zone=$zone: no zone; give one such as us-west4-a"
  [[ $extras =~ ^[a-z0-9,-]+$ ]] || fail "--extra: give a name of pyproject.toml's, such as --extra=wandb"
  [[ $module =~ ^[A-Za-z_][A-Za-z0-9_.]*$ ]] || fail "--module=$module: give one such as deit_jax.precompute"
  for variable in ${environment[@]+"${environment[@]}"}; do
    [[ $variable =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env=$variable: give NAME=VALUE"
  done
  [[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices=$slices: give a number from 1 on"
  ((slices == 1)) || kind=queued-resources
  # There while resume makes the TPU anew: one that is not there is wanted then.
  wanted=${XDG_STATE_HOME:-$HOME/.local/state}/deit_jax/$name.$zone
}

quote() { # a word as a shell reads it
  case $1 in
    '' | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
  esac
}

run() {
  if [[ ! $dry_run ]]; then
    "$@"
    return
  fi
  local word line=''
  for word in "$@"; do line+="$(quote "$word") "; done
  echo "${line% }"
}

tpu() { # VERB ARGUMENTS...
  run gcloud compute tpus "$kind" "$1" "${@:2}" --zone="$zone" ${project:+--project="$project"}
}

look_for_agent() {
  [[ $dry_run ]] || ssh-add -l >/dev/null 2>&1 ||
    echo "note: no ssh agent has a key, and gcloud wants one to reach several workers: see docs/launching.md" >&2
}

everywhere() { # ssh|scp ARGUMENTS...: on all workers of all slices
  local nodes=''
  [[ $kind == tpu-vm ]] || nodes=--node=all
  tpu "$@" --worker=all ${nodes:+"$nodes"}
}

state() { # sets STATE; in a dry run to $1
  STATE=$1
  local field='value(state)'
  [[ $kind == tpu-vm ]] || field='value(state.state)'
  if [[ $dry_run ]]; then
    tpu describe "$name" --format="$field"
  elif STATE=$(tpu describe "$name" --format="$field" 2>&1); then
    STATE=${STATE##*$'\n'} # the last line: gcloud's notes come before it
  elif [[ $STATE == *NOT_FOUND* ]]; then
    STATE=NOT_FOUND
  else
    fail "$STATE"
  fi
}

do_create() {
  if [[ ! $runtime ]]; then
    case $type in
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) runtime=tpu-ubuntu2204-base ;;
    esac
  fi
  local flags=(--version="$runtime")
  if [[ $kind == queued-resources ]]; then
    flags=(--runtime-version="$runtime" --node-id="$name")
    ((slices == 1)) || flags=(--runtime-version="$runtime" --node-count="$slices")
  fi
  tpu create "$name" --accelerator-type="$type" "${flags[@]}" ${capacity:+"$capacity"} ${create[@]+"${create[@]}"}
}

stopped_by_a_person() { fail "$name is $STATE; gcloud compute tpus tpu-vm start $name --zone=$zone, and this again"; }

await() { # until the TPU is there
  while state ACTIVE; do
    case $STATE in
      ACTIVE | READY) return ;;
      STOPPED) stopped_by_a_person ;;
      FAILED | SUSPENDED | PREEMPTED | TERMINATED)
        fail "$name is $STATE; launch/tpu_pod.sh resume makes it anew" ;;
      NOT_FOUND) fail "$name is $STATE; launch/tpu_pod.sh create asks for it" ;;
    esac
    echo "$name is $STATE; looking again in 30 s" >&2
    sleep "${TPU_POD_PAUSE:-30}"
  done
}

do_setup() {
  await
  local archive=${TMPDIR:-/tmp}/deit_jax.tar.gz
  [[ $dry_run ]] || git diff --quiet HEAD || echo "note: what is not committed stays here" >&2
  run git archive --format=tar.gz --output="$archive" HEAD
  everywhere scp "$archive" "$name:"
  # uv brings a Python of its own: that of the TPU's image is too old.
  everywhere ssh "$name" --command="set -e
$busy
rm -rf deit_jax && mkdir deit_jax && tar -xzf deit_jax.tar.gz -C deit_jax && cd deit_jax
[ -x ~/.local/bin/uv ] || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --python 3.12 .venv
~/.local/bin/uv pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[$extras]'
touch .venv/ready"
}

train() { # [FIRST]: on all workers, after the command FIRST
  local word command='' variables='' # which the supervisor has, and does not write into the log
  for word in .venv/bin/python -m "$module" "${training[@]}"; do command+=" $(quote "$word")"; done
  for word in ${environment[@]+"${environment[@]}"}; do variables+="$(quote "$word") "; done
  everywhere ssh "$name" --command="cd deit_jax 2>/dev/null && [ -e .venv/ready ] || { echo \"\$(hostname): not set up\"; exit 3; }
$busy
${1:+$1
}nohup setsid ${variables:+env $variables}bash launch/supervise.sh --log=\"\$HOME/train.log\" --$command </dev/null >/dev/null 2>&1 &"
}

# shellcheck disable=SC2088 # for the worker's shell
do_start() { train "rm -f ~/train.log.stop"; }

do_tail() {
  local follow="tail -n 20 -F train.log | sed --unbuffered \"s/^/\$(hostname): /\""
  if [[ $all ]]; then
    everywhere ssh "$name" --command="$follow"
  else
    tpu ssh "$name" --worker=0 --command="$follow"
  fi
}

do_resume() {
  failure=75 # what gcloud cannot do now it may do at the next look
  set -o errtrace
  trap 'exit "$failure"' ERR
  state SUSPENDED
  while [[ $STATE == SUSPENDING || $STATE == STOPPING ]]; do
    sleep "${TPU_POD_PAUSE:-30}"
    state SUSPENDED
  done
  case $STATE in
    NOT_FOUND | DELETING)
      [[ -e $wanted ]] || failure=2 fail "$name is $STATE; create, setup and start make it anew"
      [[ $STATE == NOT_FOUND ]] || fail "$name is $STATE; the next look asks for another"
      do_create ;;
    STOPPED) failure=2 stopped_by_a_person ;;
    FAILED | SUSPENDED | PREEMPTED | TERMINATED)
      tell "is $STATE; made anew"
      [[ $dry_run ]] || { mkdir -p "${wanted%/*}" && touch "$wanted"; }
      give_back
      do_create ;;
  esac
  forget
  if [[ $STATE == @(ACTIVE|READY) ]]; then
    judge
    local told
    if told=$(train); then go_on "started again"; fi
    [[ $told == *': not set up'* ]] || fail "$name: not all workers could be told to start"
  fi
  do_setup
  train
  go_on started
}

tell() { [[ $dry_run ]] || echo "$name: $*"; }

go_on() { # WHAT: the end of a look that another one follows
  tell "training is $*"
  [[ $dry_run ]] || exit 75
}

judge() { # comes back where training has to be started; ends the script where it runs or is over, and says which
  local ends
  ends=$(everywhere ssh "$name" --command="$how" | sed -n 's/^.*training on //p')
  if every 0 "$ends"; then
    tell "the run is done"
    exit
  elif [[ $ends == *': stopped'* ]]; then
    tell "the run was ended by stop; start goes on"
    exit
  elif [[ $ends$'\n' == *$': 2\n'* ]]; then
    failure=2 fail "$name: the run was refused (${ends//$'\n'/, }); tail shows why, start begins again"
  elif ! every '0|75|134|running|lost' "$ends"; then
    failure=1 fail "$name: the run failed (${ends//$'\n'/, }); tail shows why, start begins again"
  elif every running "$ends"; then
    go_on running
  fi
  tell "${ends//$'\n'/, }"
}

every() { # PATTERN ENDS: all workers ended so
  ! grep --extended-regexp --invert-match --quiet ": ($1)\$" <<<"$2"
}

do_stop() { # SIGTERM to the supervisor, and what it saves awaited; the file keeps one from starting that is about to
  everywhere ssh "$name" --command="touch train.log.stop
flock --nonblock train.log.pid true && exec echo \"\$(hostname): nothing is running\"
kill \"\$(cat train.log.pid)\"; flock --timeout 600 train.log.pid true; tail -n 1 train.log"
}

do_delete() {
  forget
  give_back
}

forget() { [[ $dry_run ]] || rm -f "$wanted"; }

give_back() {
  local force=''
  [[ $kind == tpu-vm ]] || force=--force # with its nodes
  tpu delete "$name" --quiet ${force:+"$force"}
}

case ${1:-} in
  create | setup | start | tail | resume | stop | delete)
    # shellcheck disable=SC2086 # TPU_POD has several flags
    parse ${TPU_POD:-} "${@:2}"
    [[ $1 != @(create|resume) || $type ]] ||
      fail "--type: missing; name the accelerator type, such as --type=v5litepod-256"
    [[ $1 != @(start|resume) || " ${training[*]-} " == *" "?(-)"-config"[=\ ]* ]] ||
      fail "--config: missing; give it with the other flags of deit_jax.main after --"
    [[ $1 == @(create|delete) || ($1 == tail && ! $all) ]] || look_for_agent
    "do_$1"
    ;;
  '' | --help | -h) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
  *) fail "$1: unknown command; known are create, setup, start, tail, resume, stop and delete" ;;
esac
