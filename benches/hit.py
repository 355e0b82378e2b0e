#!/usr/bin/env python3
"""What a hit costs: CPU microseconds per request of Tiercel and of nginx as a cache, measured in the same run on loopback.

    cargo build --release && python3 benches/hit.py [target/release/tiercel] [--rounds 5] [--secs 4] [--cells hit-1k,pass-1k]

Needs wrk and nginx (Debian: apt-get install wrk nginx-light) and two CPUs: server on the first, load and origin on the second.
How to read the figures: benches/README.md.
"""
import argparse
import contextlib
import http.client
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = {"1k": 1024, "16k": 16 * 1024, "256k": 256 * 1024}
CELLS = ["hit-1k", "hit-16k", "hit-256k", "pass-1k"]
TICKS = os.sysconf("SC_CLK_TCK")

COMMON = """
worker_processes 1;
daemon off;
{user}
pid {work}/{name}.pid;
error_log {work}/{name}.log crit;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; multi_accept on; }}
http {{
  access_log off;
  sendfile on; tcp_nopush on; tcp_nodelay on;
  keepalive_timeout 300; keepalive_requests 1000000000;
  open_file_cache max=1000 inactive=600s; open_file_cache_valid 600s;
  client_body_temp_path {work}/t; proxy_temp_path {work}/t; fastcgi_temp_path {work}/t; uwsgi_temp_path {work}/t; scgi_temp_path {work}/t;
  {http}
}}
"""
ORIGIN = """
  default_type text/html;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {work};
    location /hit/ {{
      add_header Cache-Control "public, max-age=3600"; add_header Vary Accept-Encoding; add_header Surrogate-Key "page shop";
    }}
    location /pass/ {{ add_header Cache-Control no-store; }}
  }}
"""
PEER = """
  proxy_cache_path {work}/cache levels=1:2 keys_zone=c:16m max_size=1g inactive=2h use_temp_path=off;
  upstream origin {{ server 127.0.0.1:{origin}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 300s; }}
  server {{
    listen 127.0.0.1:{port} reuseport backlog=4096;
    location /pass/ {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    location / {{
      proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_cache c; proxy_cache_key $host$request_uri; proxy_cache_lock on;
      proxy_buffers 16 16k; proxy_buffer_size 16k;
      add_header X-Cache $upstream_cache_status;
    }}
  }}
"""


class Server:
    """A process of ours with its descendants, pinned to these CPUs."""

    def __init__(self, name, command, cpus, work):
        self.name, self.port, self.is_hit = name, None, None
        self.output = open(work / f"{name}.out", "w+b")
        pin = lambda: os.sched_setaffinity(0, cpus)  # inherited by what it starts
        self.process = subprocess.Popen(command, stdout=self.output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=pin)

    def said(self):
        self.output.flush()
        return Path(self.output.name).read_text(errors="replace")

    def await_said(self, pattern):
        for _ in range(200):
            if found := re.search(pattern, self.said()):
                return found[1]
            self.check()
            time.sleep(0.05)
        sys.exit(f"{self.name} did not say {pattern}:\n{self.said()}")

    def await_port(self, port):
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                self.port = port
                return self
            self.check()
            time.sleep(0.05)
        sys.exit(f"{self.name} does not listen on {port}")

    def check(self):
        if self.process.poll() is not None:
            sys.exit(f"{self.name} ended with {self.process.returncode}:\n{self.said()}")

    def cpu_seconds(self):
        """utime and stime of the process and all its descendants."""
        parents, ticks = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)], ticks[int(entry.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
        family = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return sum(ticks.get(pid, 0) for pid in family) / TICKS

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def fetch(port, path, **fields):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=fields)
    response = connection.getresponse()
    return response, response.read()


def nginx(name, http, cpu, work, **facts):
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    file = work / f"{name}.conf"
    file.write_text(COMMON.format(name=name, work=work, user=user, http=http.format(work=work, port=port, **facts)))
    return Server(name, ["nginx", "-c", str(file), "-e", str(work / f"{name}.log")], {cpu}, work).await_port(port)


def tiercel(binary, origin, cpu, work):
    text = (HERE / "perf/tiercel.conf.in").read_text()
    for name, value in {"WORKERS": "1", "PORT": "0", "ORIGIN": f"127.0.0.1:{origin}"}.items():
        text = text.replace(f"@{name}@", value)
    file = work / "tiercel.toml"
    file.write_text(text)
    server = Server("tiercel", [str(binary), "run", "--config", str(file)], {cpu}, work)
    server.admin = int(server.await_said(r"admin http://127\.0\.0\.1:(\d+)"))
    return server.await_port(int(server.await_said(r"listener http http://127\.0\.0\.1:(\d+)")))


def load(server, path, seconds, connections, cpu, *options):
    """Requests completed, requests per second, and CPU microseconds per request of the server; `options`: of wrk."""
    url = f"http://127.0.0.1:{server.port}{path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", *options, url]
    before = server.cpu_seconds()
    said = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {cpu}), check=True).stdout
    spent = server.cpu_seconds() - before
    requests = int(re.search(r"(\d+) requests in", said)[1])
    if requests == 0 or "Non-2xx" in said or "Socket errors" in said:
        sys.exit(f"{server.name} {path}: not all was well\n{said}")
    return requests, float(re.search(r"Requests/sec:\s*([\d.]+)", said)[1]), spent / requests * 1e6


def warm_up(server, cell, connections, cpu):
    """Fills the cache, and makes sure that hits are hits and the rest is not."""
    kind, size = cell.split("-")
    path = f"/{kind}/{size}"
    for _ in range(2):
        response, body = fetch(server.port, path)
    if response.status != 200 or len(body) != SIZES[size]:
        sys.exit(f"{server.name} {path}: status {response.status}, {len(body)} bytes")
    if server.is_hit(response) != (kind == "hit"):
        sys.exit(f"{server.name} {path}: not what it should be: {response.getheaders()}")
    load(server, path, 1, connections, cpu)
    return path


def counted(admin):
    text = fetch(admin, "/metrics")[1].decode()
    return sum(int(float(value)) for value in re.findall(r"^tiercel_requests_total\{.*\} (\S+)$", text, re.M))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", type=Path, default=HERE.parent / "target/release/tiercel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=int, default=4, help="of each measurement")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--cells", default=",".join(CELLS), help=", ".join(CELLS))
    options = parser.parse_args()
    missing = [package for tool, package in {"wrk": "wrk", "nginx": "nginx-light"}.items() if not shutil.which(tool)]
    if missing:
        sys.exit(f"needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    if not options.binary.is_file():
        sys.exit(f"{options.binary} is not there: cargo build --release")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        sys.exit("needs two CPUs: one for the server, one for the load")
    cells = options.cells.split(",")
    if unknown := set(cells) - set(CELLS):
        sys.exit(f"no such cell: {', '.join(unknown)}; there are {', '.join(CELLS)}")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # nginx caches in files: not on a disk
    with tempfile.TemporaryDirectory(prefix="tiercel-bench-", dir=memory) as work, contextlib.ExitStack() as running:
        measure(options, cells, cpus, Path(work), running)


def measure(options, cells, cpus, work, running):
    for folder in ("hit", "pass", "t"):
        (work / folder).mkdir()
    for name, size in SIZES.items():
        (work / "hit" / name).write_bytes(b"x" * size)
        (work / "pass" / name).write_bytes(b"x" * size)
    serve, drive = cpus[0], cpus[1]
    origin = nginx("origin", ORIGIN, drive, work)
    running.callback(origin.stop)
    peer = nginx("nginx", PEER, serve, work, origin=origin.port)
    running.callback(peer.stop)
    peer.is_hit = lambda response: response.getheader("X-Cache") == "HIT"
    ours = tiercel(options.binary, origin.port, serve, work)
    running.callback(ours.stop)
    ours.is_hit = lambda response: "; hit" in response.getheader("Cache-Status", "")
    version = subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr.strip().rpartition("/")[2]
    print(f"nginx {version}, {options.connections} connections, medians of {options.rounds} rounds of {options.secs} s, load average "
          f"{os.getloadavg()[0]:.1f}")
    print(f"{'cell':<10}{'nginx us':>10}{'tiercel us':>12}{'ratio':>8}{'nginx req/s':>14}{'tiercel req/s':>15}")
    for cell in cells:
        paths = {server: warm_up(server, cell, options.connections, drive) for server in (peer, ours)}
        seen = {peer: [], ours: []}
        before = counted(ours.admin)
        for number in range(options.rounds):
            for server in (peer, ours) if number % 2 == 0 else (ours, peer):
                seen[server].append(load(server, paths[server], options.secs, options.connections, drive))
        completed = sum(requests for requests, _, _ in seen[ours])
        if counted(ours.admin) - before < completed:
            sys.exit(f"{cell}: /metrics shows fewer than the {completed} requests that were answered")
        micros = {server: statistics.median(cost for _, _, cost in seen[server]) for server in seen}
        rate = {server: statistics.median(per_second for _, per_second, _ in seen[server]) for server in seen}
        print(f"{cell:<10}{micros[peer]:>10.1f}{micros[ours]:>12.1f}{micros[ours] / micros[peer]:>8.2f}{rate[peer]:>14.0f}{rate[ours]:>15.0f}",
              flush=True)


if __name__ == "__main__":
    main()
