#!/usr/bin/env python3
"""What coding costs: the first request for a form against nginx's gzip, and hits on a form against hits of the same length without a coding.

    cargo build --release && python3 benches/compression.py [target/release/tiercel] [--rounds 5] [--secs 3]

Needs wrk and nginx, and two CPUs, as hit.py does: server on the first, load and origin on the second. How to read the figures:
benches/README.md.
"""
import argparse
import json
import os
import random
import re
import statistics
import sys
import tempfile
from pathlib import Path

from hit import HERE, Server, fetch, load, nginx

BYTES = 100_000
SMALL = 4_000
FIRST_MOST, HIT_MOST = 1.2, 1.1

ORIGIN = """
  types {{ application/json json; text/html html; application/javascript js; text/plain txt; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {work};
    location / {{ add_header Cache-Control "public, max-age=3600"; }}
  }}
"""
PEER = """
  proxy_cache_path {work}/cache levels=1:2 keys_zone=c:16m max_size=512m inactive=2h use_temp_path=off;
  upstream origin {{ server 127.0.0.1:{origin}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 300s; }}
  gzip on; gzip_comp_level {level}; gzip_min_length 1024; gzip_proxied any; gzip_buffers 32 16k;
  gzip_types application/json text/html application/javascript;
  server {{
    listen 127.0.0.1:{port} reuseport backlog=4096;
    location / {{
      proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Accept-Encoding identity;
      proxy_cache c; proxy_cache_key $host$request_uri; proxy_cache_lock on;
      proxy_buffers 16 16k; proxy_buffer_size 16k;
    }}
  }}
"""
TIERCEL = """
[server]
workers = 1
[listeners.http]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
[log]
level = "warn"
access.target = "off"
[memory]
limit = "512MiB"
[upstreams.app]
endpoints = ["http://127.0.0.1:{origin}"]
[compression]
enabled = true
hot_hits = 0
[sites.default]
[[sites.default.routes]]
path = "/plain/"
compression = false
"""
# A URL of its own for each request: none is a hit.
NEVER_TWICE = """
local n = math.random(1000000000)
function request() n = n + 1; return wrk.format("GET", "{path}?n=" .. n) end
"""


def payloads(work):
    """Three kinds of text, always the same: records, prose with markup, and program text (of this repository)."""
    chance = random.Random(9842)
    prose = " ".join(file.read_text() for file in sorted((HERE.parent / "docs").glob("*.md")))
    words = re.findall(r"[a-z]{3,}", prose)
    records = [{"id": at, "name": " ".join(chance.choices(words, k=3)), "price": chance.randrange(100_000) / 100, "in_stock": chance.random() < 0.7,
                "tags": chance.choices(words, k=4), "text": " ".join(chance.choices(words, k=20))} for at in range(500)]
    paragraphs = "".join(f'<div class="section"><p id="p{at}">{text}</p></div>\n' for at, text in enumerate(prose.split("\n")) if text)
    program = "".join(file.read_text() for file in sorted((HERE.parent / "src").rglob("*.rs")))
    for name, text in {"a.json": json.dumps(records), "a.html": paragraphs, "a.js": program}.items():
        (work / name).write_bytes(text.encode()[:BYTES])


def tiercel(binary, origin, cpu, work):
    file = work / "tiercel.toml"
    file.write_text(TIERCEL.format(origin=origin))
    server = Server("tiercel", [str(binary), "run", "--config", str(file)], {cpu}, work)
    server.admin = int(server.await_said(r"admin http://127\.0\.0\.1:(\d+)"))
    return server.await_port(int(server.await_said(r"listener http http://127\.0\.0\.1:(\d+)")))


def cost(server, cpu, seconds, path, coding, script=None):
    """CPU microseconds of the server per request."""
    more = ["-s", str(script)] if script else []
    return load(server, path, seconds, 16, cpu, "-H", f"Accept-Encoding: {coding}", *more)[2]


def size(server, path, coding):
    response, body = fetch(server.port, path, **{"Accept-Encoding": coding})
    if (response.getheader("Content-Encoding") or "identity") != coding:
        sys.exit(f"{server.name} {path}: not {coding}: {response.getheaders()}")
    return len(body)


def verdict(what, ratio, most):
    print(f"{what}: {ratio:.2f} of at most {most}: {'pass' if ratio <= most else 'FAIL'}", flush=True)
    return ratio <= most


def first(ours, origin, cpus, work, args):
    """The first request for a form: fetched, coded, stored; nginx at the strongest level whose result is no smaller than ours."""
    well = True
    peers = {level: nginx(f"nginx{level}", PEER, cpus[0], work, origin=origin.port, level=level) for level in range(1, 10)}
    try:
        for kind in ["json", "html", "js"]:
            path = f"/a.{kind}"
            length = size(ours, f"{path}?once", "gzip")
            levels = {level: size(peer, f"{path}?once", "gzip") for level, peer in peers.items()}
            level = max((level for level, theirs in levels.items() if theirs >= length), default=1)
            script = work / "never-twice.lua"
            script.write_text(NEVER_TWICE.format(path=path))
            pairs = [[cost(server, cpus[1], args.secs, path, "gzip", script) for server in (ours, peers[level])] for _ in range(args.rounds)]
            us, theirs = (statistics.median(side) for side in zip(*pairs))
            print(f"first {kind}: {length} bytes in {us:.0f} us; nginx gzip {level}: {levels[level]} bytes in {theirs:.0f} us")
            well &= verdict(f"first {kind}", us / theirs, FIRST_MOST)
    finally:
        for peer in peers.values():
            peer.stop()
    return well


def hits(ours, cpus, work, args):
    """A form out of the store, and as many bytes without a coding, on a route that codes nothing."""
    well = True
    (work / "plain").mkdir()
    (work / "small.json").write_bytes((work / "a.json").read_bytes()[:SMALL])
    for page, coding in [("small", "gzip"), ("a", "gzip"), ("a", "br"), ("a", "zstd")]:
        for _ in range(3):
            length = size(ours, f"/{page}.json", coding)
        same = f"/plain/{page}-{coding}.json"
        (work / same[1:]).write_bytes(os.urandom(length))
        size(ours, same, "identity")
        cells = [(f"/{page}.json", coding), (same, coding)]
        pairs = [[cost(ours, cpus[1], args.secs, path, coding) for path, coding in cells] for _ in range(args.rounds)]
        form, plain = (statistics.median(side) for side in zip(*pairs))
        print(f"hit {coding}: {length} bytes in {form:.1f} us; without a coding {plain:.1f} us")
        well &= verdict(f"hit {coding}, {length} bytes", form / plain, HIT_MOST)
    return well


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", default=HERE.parent / "target/release/tiercel", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=int, default=3)
    args = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        sys.exit("two CPUs are needed")
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        work = Path(folder)
        work.chmod(0o755)
        payloads(work)
        origin = nginx("origin", ORIGIN, cpus[1], work)
        ours = None
        try:
            ours = tiercel(args.binary, origin.port, cpus[0], work)
            well = [hits(ours, cpus, work, args), first(ours, origin, cpus, work, args)]
        finally:
            for server in filter(None, [ours, origin]):
                server.stop()
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
