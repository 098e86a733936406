#!/usr/bin/env bash
# Runs a command, and runs it again where its exit status asks for that: 75 (interrupted, and saved) and 134 (JAX ended
# a process whose peer was gone). All others end it: 0 is done, 2 a mistake to mend, anything else a fault.
#
#   launch/supervise.sh [--tries=100] [--pause=SECONDS] [--log=FILE] [--dry-run] -- COMMAND...
#
# SIGTERM and SIGINT go on to the command and its process group as SIGTERM; it saves and is not run again. With --log the
# output is appended to FILE, and FILE.pid, locked while this runs, has the number of the process to send SIGTERM to.
# Where there is a FILE.stop nothing is run: who makes it first, and then looks at the lock, stops also what has not begun
# yet.
set -uo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

tries=100 pause=10 log='' dry_run=''
while [[ ${1:-} == --* ]]; do
  case $1 in
    --tries=*) tries=${1#*=} ;;
    --pause=*) pause=${1#*=} ;;
    --log=*) log=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
    --) shift && break ;;
    *) fail "$1: unknown flag; known are --tries, --pause, --log, --dry-run and --help" ;;
  esac
  shift
done
[[ $tries =~ ^[1-9][0-9]{0,8}$ ]] || fail "--tries=$tries: give a number from 1 on"
[[ $pause =~ ^[0-9]{1,9}$ ]] || fail "--pause=$pause: give a number of seconds"
(($#)) || fail "no command; give it after --"
if [[ $dry_run ]]; then
  printf '%q ' "$@"
  [[ ! $log ]] || printf '>>%q 2>&1' "$log"
  echo "  # up to $tries times, while it ends in 75 or 134"
  exit
fi
if [[ $log ]]; then
  unwritable="--log=$log: cannot be written; name another file"
  [[ ! -d $log && (! -e $log || -w $log) ]] || fail "$unwritable"
  mkdir -p "$(dirname "$log")" 2>/dev/null || fail "$unwritable"
  { exec 9>>"$log.pid"; } 2>/dev/null || fail "$unwritable"
  # A second: who looks whether training runs takes the lock for a moment.
  flock --timeout 1 9 || fail "$log: written by another supervisor; stop that one, or name another log"
  echo $$ >"$log.pid"
  [[ ! -e $log.stop ]] || { echo "supervise: nothing is run, since there is $log.stop" >&2 && exit 75; }
  exec >>"$log" 2>&1 || exit 2
fi

say() { echo "supervise: $(date '+%F %T') $(hostname): $*"; }

child='' stopped='' # child: what is waited for, the command or a pause
stop() {
  stopped=1
  [[ $child ]] && kill -TERM -- "-$child" 2>/dev/null
}
trap stop TERM INT

start() { # COMMAND...: in a process group of its own, so that a signal also reaches what it waits for
  set -m
  "$@" </dev/null 9>&- &
  child=$!
  set +m
  [[ ! $stopped ]] || stop
}

for ((try = 1; ; try++)); do
  say "try $try of $tries: $*"
  start "$@"
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a signal ends `wait`, not the command
  wait "$child" # tells the status again
  status=$?
  child=''
  say "exit status $status"
  [[ $status == 75 || $status == 134 ]] && [[ ! $stopped ]] && ((try < tries)) || exit "$status"
  start sleep "$pause"
  wait "$child"
  child=''
  [[ ! $stopped ]] || exit "$status"
done
