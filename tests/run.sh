#!/usr/bin/env bash
# Runs the suites one after the other, all of them whatever fails, and ends with a table, what did not run and why, which
# S3 answered, and the sum. `tests/run.sh quick` leaves out the suites that need root or an S3 endpoint, `all` nothing.
#
# A suite is a file of tests/tests; `unit` and `doc` are the tests beside the code. What a suite needs stands in its first
# lines, as in `//! Needs: root, S3.`, and how many of its tests run at once, if not one for each processor, as in `//! Threads: 4`.
# Lines that a test prints are collected when they begin with
#   S3 engine:  which implementation of S3 answered
#   not run:    what was left out: a failure, unless it is for want of TAPFLEET_EXTRA_PCAPS, data from outside
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:?usage: tests/run.sh quick|all}
logs=${CARGO_TARGET_DIR:-target}/test-logs
suite_seconds_max=1200
export CARGO_TERM_COLOR=never TAPFLEET_CACHE=${TAPFLEET_CACHE:-$PWD/.cache}

rm -rf "$logs"
mkdir -p "$logs"

declare -A outcome seconds
suites=()
passed=0
failed=0

needs() { head -n 12 "tests/tests/$1.rs" 2>/dev/null | grep -oE '^//! Needs:.*' || true; }

# The threads that a suite asks for, as a setting of the test program.
threads() { head -n 12 "tests/tests/$1.rs" 2>/dev/null | sed -nE 's/^\/\/! Threads: ([0-9]+).*/RUST_TEST_THREADS=\1/p'; }

# Adds the numbers before "$2" of all result lines of a log; 0 where there is none, as after a suite that did not compile.
sum() { awk -v what="$2" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ "^" what) n += $(i - 1) } END { print n + 0 }' "$1"; }

# Runs one suite: name, then the arguments that choose it. A suite that needs root runs under sudo when this shell is not root.
suite() {
  local name=$1 log=$logs/$1.log start=$EPOCHREALTIME status=0 variables=()
  shift
  suites+=("$name")
  if [[ $(needs "$name") == *root* && $(id -u) -ne 0 ]]; then
    if ! sudo -n true 2>/dev/null; then
      echo "not run: suite '$name' needs root, and 'sudo -n' does not give it" >"$log"
      finish "$name" 0 1
      return
    fi
    local host
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    variables=("CARGO_TARGET_${host}_RUNNER=sudo -n -E")
  fi
  mapfile -t -O "${#variables[@]}" variables < <(threads "$name")
  env "${variables[@]}" timeout --kill-after=20 "$suite_seconds_max" \
    cargo test --workspace --locked --no-fail-fast "$@" -- --show-output >"$log" 2>&1 </dev/null || status=$?
  finish "$name" "$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')" "$status"
}

# Counts what a suite's log says and prints its line; shows the log of a failed one.
finish() {
  local name=$1 log=$logs/$1.log status=$3 good bad
  good=$(sum "$log" passed)
  bad=$(($(sum "$log" failed) + $(sum "$log" ignored) + $(grep '^not run: ' "$log" | grep -cv TAPFLEET_EXTRA_PCAPS || true)))
  # Ended without saying what failed (did not compile, timed out, was killed), or tested nothing.
  if { [ "$status" -ne 0 ] || [ "$good" -eq 0 ]; } && [ "$bad" -eq 0 ]; then
    bad=1
  fi
  passed=$((passed + good))
  failed=$((failed + bad))
  seconds[$name]=$(printf '%.1f' "$2")
  outcome[$name]="$good passed, $bad failed"
  if [ "$bad" -gt 0 ]; then
    echo "==== $name: the end of $log ===="
    tail -n 150 "$log"
    case $status in
    124 | 137) echo "stopped: $suite_seconds_max s are over" ;;
    *) echo "ended with status $status" ;;
    esac
    echo "==== $name ===="
  fi
  printf '%-16s %-24s %8s s\n' "$name" "${outcome[$name]}" "${seconds[$name]}"
}

# The inner loop has a part of the random sequences.
[[ $mode != quick ]] || export TAPFLEET_SEQUENCES=${TAPFLEET_SEQUENCES:-500}

echo "building (target folder: ${CARGO_TARGET_DIR:-target}; the first time takes about ten minutes on two cores)"
started=$EPOCHREALTIME
# A log wants no line per crate, a person who waits wants to see it move.
quiet=(--quiet)
[ ! -t 2 ] || quiet=()
# The daemon and the command beside the test programs, which start them; then the test programs. What does not compile fails its suite.
cargo build "${quiet[@]}" --workspace --locked
cargo test "${quiet[@]}" --workspace --locked --no-run || true
printf '%-41s %8.1f s\n' built "$(awk -v a="$started" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')"

suite unit --lib --bins
suite doc --doc
for file in tests/tests/*.rs; do
  name=$(basename "$file" .rs)
  [[ $mode == quick && -n $(needs "$name") ]] || suite "$name" --test "$name"
done

echo
echo "suite            result                    seconds"
for name in "${suites[@]}"; do
  printf '%-16s %-24s %8s\n' "$name" "${outcome[$name]}" "${seconds[$name]}"
done
echo
if [ "$mode" = quick ]; then
  echo "quick: suites that need root or S3 were left out; 'make test' runs them"
fi
grep -hE '^not run: ' "$logs"/*.log | sort -u || true
if [ "$mode" = all ]; then
  grep -hE '^S3 engine: ' "$logs"/*.log | sort | uniq -c | sed -E 's/^ *([0-9]+) (S3 engine: .*)/\2 (\1 times)/' | grep . || echo "S3 engine: none was started"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
