#!/usr/bin/env bash
# Builds the image's root as a directory and runs it as the container would: read-only, as uid 65532, with UPSTREAM alone.
# No container engine is needed; what this does not cover is the engine itself (layers, networks, the Dockerfile's build stage).
set -euo pipefail
cd "$(dirname "$0")/.."
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
docker/build-root.sh target/release/tiercel "$work/root"
mkdir "$work/site"
echo "from the origin" >"$work/site/index.txt"
python3 -u -m http.server --bind 127.0.0.1 --directory "$work/site" 0 >"$work/origin.log" 2>&1 &
pids+=($!)
until port=$(sed -n 's/.* port \([0-9]*\) .*/\1/p' "$work/origin.log") && [ -n "$port" ]; do sleep 0.1; done

# A mount namespace of its own: the root bound onto itself, read-only; then chroot without privileges.
UPSTREAM="http://127.0.0.1:$port" LISTEN=127.0.0.1:0 TIERCEL_CONFIG=/etc/tiercel/tiercel.toml \
  TIERCEL__METRICS__ADDRESS=127.0.0.1:0 TIERCEL__ADMIN__ADDRESS=127.0.0.1:0 \
  unshare -m sh -ec '
  mount --bind "$1" "$1"
  mount -o remount,ro,bind "$1"
  mount -t proc proc "$1/proc"
  exec chroot --userspec=65532:65532 "$1" /usr/bin/tiercel --memory 128MiB
' sh "$work/root" >"$work/out" 2>"$work/err" &
pids+=($!)
for _ in $(seq 100); do
  address=$(sed -n 's/^listener [^ ]* \(http:.*\)/\1/p' "$work/out")
  [ -n "$address" ] && break
  kill -0 "${pids[1]}" || { cat "$work/out" "$work/err"; exit 1; }
  sleep 0.1
done
metrics=$(sed -n 's/^metrics \(http:.*\)/\1/p' "$work/out")
curl -sSf "$address/index.txt" | grep -q "from the origin"
curl -sSf -o /dev/null -D - "$address/index.txt" | grep -i "^cache-status: .*hit"
curl -sSf "$metrics/metrics" | grep -q '^tiercel_requests_total'
curl -sSf "$metrics/readyz" >/dev/null
pid=$(pgrep -P "${pids[1]}" -x tiercel || echo "${pids[1]}")
[ "$(awk '/^Uid:/ {print $2}' "/proc/$pid/status")" = 65532 ] || { echo "image: not uid 65532"; exit 1; }
chroot "$work/root" /usr/bin/tiercel version
echo "image: runs read-only as uid 65532 ($(du -sm "$work/root" | cut -f1) MiB)"
