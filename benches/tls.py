#!/usr/bin/env python3
"""What a hit of 1 KiB over TLS costs: CPU microseconds per request of Tiercel and of nginx as a cache, in the same run on loopback.

    cargo build --release && python3 benches/tls.py [target/release/tiercel] [--rounds 5] [--secs 4] [--cells h1,h2]

Needs h2load, nginx and openssl (Debian: apt-get install nghttp2-client nginx-light openssl) and two CPUs, as hit.py does. Both
show the same ECDSA certificate and speak TLS 1.3 with AES-128-GCM; connections are kept, so handshakes do not count. h1 is one
request at a time on each connection, h2 ten; h2c is h2 without TLS, to tell the one from the other.
"""
import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import hit

CELLS = {"h1": ["--h1"], "h2": ["-m", "10"], "h2c": ["-m", "10"]}
SUITE = "TLS_AES_128_GCM_SHA256"
SECURE = """
  server {{
    listen 127.0.0.1:{tls_port} ssl http2 reuseport backlog=4096;
    listen 127.0.0.1:{plain_port} http2 reuseport backlog=4096;
    ssl_certificate {work}/shop.pem; ssl_certificate_key {work}/shop.key; ssl_protocols TLSv1.3; ssl_buffer_size 16k;
    ssl_conf_command Ciphersuites """ + SUITE + """;
    http2_max_requests 1000000000;
    location / {{
      proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_cache c; proxy_cache_key $host$request_uri; proxy_cache_lock on;
      proxy_buffers 16 16k; proxy_buffer_size 16k;
      add_header X-Cache $upstream_cache_status;
    }}
  }}
"""


def tiercel(binary, origin, cpu, work):
    plain = (hit.HERE / "perf/tiercel.conf.in").read_text()
    for name, value in {"WORKERS": "1", "PORT": "0", "ORIGIN": f"127.0.0.1:{origin}"}.items():
        plain = plain.replace(f"@{name}@", value)
    (work / "plain.toml").write_text(plain)
    file = work / "tiercel.toml"
    file.write_text(f"""include = ["plain.toml"]
[listeners.secure]
address = "127.0.0.1:0"
tls.certificates = [{{ cert_file = "{work}/shop.pem", key_file = "{work}/shop.key" }}]
tls.min_version = "1.3"
tls.suites = ["{SUITE}"]
[listeners.plain]
address = "127.0.0.1:0"
h2c = true
""")
    server = hit.Server("tiercel", [str(binary), "run", "--config", str(file)], {cpu}, work)
    server.plain_port = int(server.await_said(r"listener plain http://127\.0\.0\.1:(\d+)"))
    return server.await_port(int(server.await_said(r"listener secure https://127\.0\.0\.1:(\d+)")))


def load(server, seconds, connections, cpu, cell):
    """Requests per second, and CPU microseconds per request of the server."""
    is_plain = cell == "h2c"
    url = f"http://127.0.0.1:{server.plain_port}/hit/1k" if is_plain else f"https://127.0.0.1:{server.port}/hit/1k"
    command = ["h2load", "-t1", f"-c{connections}", f"-D{seconds}", *CELLS[cell], url]
    before = server.cpu_seconds()
    said = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {cpu}), check=True).stdout
    spent = server.cpu_seconds() - before
    good, bad = int(re.search(r"(\d+) succeeded", said)[1]), int(re.search(r"(\d+) failed", said)[1])
    statuses = re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", said)
    if not good or bad or not statuses or not (is_plain or SUITE in said):
        sys.exit(f"{server.name}: not all was well\n{said}")
    return good / seconds, spent / good * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", type=Path, default=hit.HERE.parent / "target/release/tiercel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=int, default=4, help="of each measurement")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--cells", default=",".join(CELLS), help=", ".join(CELLS))
    options = parser.parse_args()
    if missing := [tool for tool in ("h2load", "nginx", "openssl") if not shutil.which(tool)]:
        sys.exit(f"needs {' and '.join(missing)}: apt-get install nghttp2-client nginx-light openssl")
    if not options.binary.is_file():
        sys.exit(f"{options.binary} is not there: cargo build --release")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        sys.exit("needs two CPUs: one for the server, one for the load")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tiercel-tls-", dir=memory) as work, contextlib.ExitStack() as running:
        measure(options, cpus, Path(work), running)


def measure(options, cpus, work, running):
    for folder in ("hit", "t"):
        (work / folder).mkdir()
    (work / "hit/1k").write_bytes(b"x" * 1024)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                    "/CN=shop", "-keyout", work / "shop.key", "-out", work / "shop.pem"], check=True, capture_output=True)
    serve, drive = cpus[0], cpus[1]
    origin = hit.nginx("origin", hit.ORIGIN, drive, work)
    running.callback(origin.stop)
    tls_port, plain_port = hit.free_port(), hit.free_port()
    peer = hit.nginx("nginx", hit.PEER + SECURE, serve, work, origin=origin.port, tls_port=tls_port, plain_port=plain_port)
    running.callback(peer.stop)
    peer.port, peer.plain_port = tls_port, plain_port
    ours = tiercel(options.binary, origin.port, serve, work)
    running.callback(ours.stop)
    version = subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr.strip().rpartition("/")[2]
    print(f"nginx {version}, {options.connections} connections, medians of {options.rounds} rounds of {options.secs} s, load average "
          f"{os.getloadavg()[0]:.1f}")
    print(f"{'cell':<6}{'nginx us':>10}{'tiercel us':>12}{'ratio':>8}{'nginx req/s':>14}{'tiercel req/s':>15}")
    for cell in options.cells.split(","):
        seen = {peer: [], ours: []}
        for server in seen:
            load(server, 1, options.connections, drive, cell)
        for number in range(options.rounds):
            for server in (peer, ours) if number % 2 == 0 else (ours, peer):
                seen[server].append(load(server, options.secs, options.connections, drive, cell))
        rate, micros = ({server: statistics.median(one[at] for one in seen[server]) for server in seen} for at in (0, 1))
        print(f"{cell:<6}{micros[peer]:>10.1f}{micros[ours]:>12.1f}{micros[ours] / micros[peer]:>8.2f}{rate[peer]:>14.0f}{rate[ours]:>15.0f}",
              flush=True)


if __name__ == "__main__":
    main()
