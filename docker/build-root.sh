#!/bin/sh
# Builds the root directory of the image: the binary, the libraries that it links, its configuration, nothing else.
#   docker/build-root.sh BINARY DIRECTORY
# The Dockerfile calls this, and so does the test of the image (tests/image.sh).
set -eu
binary=$1
root=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$root/usr/bin" "$root/etc/tiercel" "$root/var/lib/tiercel" "$root/proc" "$root/tmp"
install -m 755 "$binary" "$root/usr/bin/tiercel"
install -m 644 "$here/tiercel.toml" "$root/etc/tiercel/tiercel.toml"
printf 'tiercel:x:65532:65532:tiercel:/var/lib/tiercel:/sbin/nologin\n' >"$root/etc/passwd"
printf 'tiercel:x:65532:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
ldd "$binary" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done
chown -R 65532:65532 "$root/var/lib/tiercel" 2>/dev/null || true
chmod 1777 "$root/tmp"
