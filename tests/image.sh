#!/usr/bin/env bash
# Builds the image's root as a directory and runs it as the container would: read-only, as uid 65532, with UPSTREAM alone.
#   tests/image.sh [BINARY]        (default: target/release/tiercel)
# No container engine is needed; what this does not cover is the engine itself (layers, networks, the Dockerfile's build stage).
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-target/release/tiercel}
if [ "$(id -u)" != 0 ]; then
  echo "image: needs root for chroot and mounts" >&2
  exit 1
fi
work=$(mktemp -d)
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
fail() {
  echo "image: $*" >&2
  cat "$work/out" "$work/err" >&2 2>/dev/null || true
  exit 1
}
# until_there SECONDS COMMAND...: waits until the command prints something, and prints that.
until_there() {
  local end=$((SECONDS + $1)) found
  shift
  until found=$("$@") && [ -n "$found" ]; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.05
  done
  printf '%s\n' "$found"
}

docker/build-root.sh "$binary" "$work/root"
mkdir "$work/site"
echo "from the origin" >"$work/site/index.txt"
touch -d "2 days ago" "$work/site/index.txt" # heuristic freshness is a share of its age
touch "$work/out" "$work/err"
python3 -u -m http.server --bind 127.0.0.1 --directory "$work/site" 0 >"$work/origin.log" 2>&1 &
pids+=($!)
port=$(until_there 20 sed -n 's/.* port \([0-9]*\) .*/\1/p' "$work/origin.log") || fail "no origin"

# What the Dockerfile sets, UPSTREAM, and free ports; nothing else of this environment gets in. The mount namespace is the
# container's own: the root bound onto itself, read-only. `exec` all the way: the process is our child, as an engine's is.
image() {
  exec env -i TIERCEL_CONFIG=/etc/tiercel/tiercel.toml "$@"
}
in_root='
  mount --bind "$1" "$1"
  mount -o remount,ro,bind "$1"
  mount -t proc proc "$1/proc"
  cd "$1"
  shift
  exec chroot --userspec=65532:65532 . /usr/bin/tiercel "$@"
'
image UPSTREAM="http://127.0.0.1:$port" LISTEN=127.0.0.1:0 TIERCEL__METRICS__ADDRESS=127.0.0.1:0 TIERCEL__ADMIN__ADDRESS=127.0.0.1:0 \
  "$(command -v unshare)" -m "$(command -v sh)" -ec "PATH=$PATH; $in_root" sh "$work/root" --memory 128MiB >"$work/out" 2>"$work/err" &
pid=$!
pids+=("$pid")
address=$(until_there 20 sed -n 's/^listener http \(http:.*\)/\1/p' "$work/out") || fail "it did not start"
metrics=$(until_there 20 sed -n 's/^metrics \(http:.*\)/\1/p' "$work/out") || fail "no metrics listener"

curl -sSf "$address/index.txt" | grep -q "from the origin" || fail "the origin's answer does not arrive"
curl -sSf -o /dev/null -D - "$address/index.txt" | grep -qi "^cache-status: .*hit" || fail "the second answer is no hit"
# Read to its end: a grep that ends at the first match would end curl with an error.
curl -sSf "$metrics/metrics" | grep '^tiercel_requests_total' >/dev/null || fail "no metrics"
until_there 20 grep -o '"path":"/index.txt"' "$work/out" >/dev/null || fail "no access log on standard output"
[ "$(awk '/^Uid:/ {print $2}' "/proc/$pid/status")" = 65532 ] || fail "not uid 65532"
[ "$(awk '/^Gid:/ {print $2}' "/proc/$pid/status")" = 65532 ] || fail "not gid 65532"
awk '$5 == "/" && $6 ~ /(^|,)ro(,|$)/ {found = 1} END {exit !found}' "/proc/$pid/mountinfo" || fail "the root is not read-only"
! find "$work/root" -type f -perm /022 -not -path '*/proc/*' | grep -q . || fail "files that others may write"

# The health check, as the Dockerfile has it but for the port; without UPSTREAM the container says what is missing.
(image "$(command -v chroot)" --userspec=65532:65532 "$work/root" /usr/bin/tiercel health "$metrics") | grep -qx ready || fail "not healthy"
if (image "$(command -v chroot)" --userspec=65532:65532 "$work/root" /usr/bin/tiercel run) 2>"$work/refused"; then fail "it runs without UPSTREAM"; fi
grep -q UPSTREAM "$work/refused" || { cat "$work/refused" >&2; fail "UPSTREAM is not asked for by name"; }

# As `docker stop` ends it.
kill -TERM "$pid"
wait "$pid" || fail "SIGTERM is no clean end"
echo "image: runs read-only as uid 65532 ($(du -sm "$work/root" | cut -f1) MiB)"
