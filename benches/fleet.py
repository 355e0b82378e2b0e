#!/usr/bin/env python3
"""What a fleet costs and how it fares while its Redis is ill: figures with bars, all on loopback.

    cargo build --release && python3 benches/fleet.py [--binary target/release/tiercel] [--quick] [--cells propagation,slow]

Needs redis-server and nginx (Debian: apt-get install redis-server nginx-light) and two CPUs.
What the cells do and how to read the figures: benches/README.md.
"""
import argparse
import asyncio
import collections
import contextlib
import gc
import http.client
import itertools
import json
import os
import select
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from abuse import Beside, Bench
from hit import HERE, Server, fetch, free_port, nginx

BUDGET_MS = 25  # the default of cache.redis.lookup_budget
TRUST = 3.0  # the default of journal.trust, in seconds
NOISE_MS = 10  # by which the worst of thousands of requests may be worse: this machine does other things, too
BODY = "x" * 1024
ORIGIN = """
  default_type text/html;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ add_header Cache-Control "public, max-age=3600"; return 200 "%s"; }}
  }}
""" % BODY
CONFIG = """
[server]
name = "@NAME@"
workers = 1
[listeners.http]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
[memory]
limit = "1GiB"
[limits]
requests_per_connection = 1000000000
[upstreams.origin]
endpoints = ["http://127.0.0.1:@ORIGIN@"]
[sites.main]
upstream = "origin"
[log.access]
target = "off"
"""
SHARED = """
[journal]
node = "@NAME@"
[cache.redis]
url = "redis://127.0.0.1:@REDIS@"
"""


class Redis:
    """A redis-server with nothing on disk."""

    def __init__(self, work, cpu):
        self.work, self.cpu, self.port = work, cpu, free_port()
        self.start()

    def start(self):
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.work)]
        self.server = Server("redis", command, {self.cpu}, self.work).await_port(self.port)

    def ask(self, *words):
        with socket.create_connection(("127.0.0.1", self.port), 10) as link:
            link.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words))
            said = link.recv(65536)
        if said.startswith(b"-"):
            sys.exit(f"redis: {words}: {said}")
        return said

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            self.server.process.send_signal(signal.SIGCONT)
        self.server.stop()


def link(pipe, redis):
    """Between a node and Redis: whole, or what Redis says comes 2 s late, or as nonsense."""
    mode = ["whole"]

    async def forward(reader, writer, from_redis):
        loop, last = asyncio.get_running_loop(), 0.0

        def pass_on(data):
            if not writer.is_closing():
                writer.write(data)

        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if from_redis and mode[0] == "slow":
                    last = max(last, loop.time() + 2)
                    loop.call_at(last, pass_on, data)
                else:
                    pass_on(b"?" * len(data) if from_redis and mode[0] == "garbage" else data)

    async def join(reader, writer):
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", redis)
            await asyncio.wait([asyncio.ensure_future(forward(reader, far_writer, False)), asyncio.ensure_future(forward(far_reader, writer, True))],
                               return_when=asyncio.FIRST_COMPLETED)
            far_writer.close()
        writer.close()

    async def run():
        server = await asyncio.start_server(join, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        while (said := await asyncio.get_running_loop().run_in_executor(None, pipe.recv)) != "stop":
            mode[0] = said
        pipe.send(None)
        os._exit(0)

    asyncio.run(run())


class Paced:
    """Requests at a fixed rate over connections that stay: each for the next path. Milliseconds from request to whole answer."""

    def __init__(self, port, connections=16):
        self.poll, self.sockets = select.epoll(), {}
        for _ in range(connections):
            client = socket.create_connection(("127.0.0.1", port))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets[client.fileno()] = client
            self.poll.register(client, select.EPOLLIN)
        self.free = collections.deque(self.sockets)
        self.failed, self.sources = 0, collections.Counter()

    def run(self, paths, per_second):
        """All latencies, in the order of the answers."""
        asked, heard, millis = {}, collections.defaultdict(bytes), []
        gc.disable()
        began = time.perf_counter()
        for number, path in enumerate(paths):
            due = began + number / per_second
            while not self.free or time.perf_counter() < due:
                self.take(asked, heard, millis, max(0.0, min(0.05, due - time.perf_counter())) if self.free else 0.05)
            fd = self.free.popleft()
            asked[fd] = time.perf_counter()
            self.sockets[fd].send(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        until = time.perf_counter() + 20
        while asked and time.perf_counter() < until:
            self.take(asked, heard, millis, 0.05)
        gc.enable()
        if asked:
            sys.exit(f"{len(asked)} requests without an answer after 20 s")
        return millis

    def take(self, asked, heard, millis, timeout):
        for fd, _ in self.poll.poll(timeout):
            said = self.sockets[fd].recv(65536)
            if not said:
                sys.exit("a connection was closed")
            heard[fd] += said
            head, found, body = heard[fd].partition(b"\r\n\r\n")
            if not found or len(body) < len(BODY) and head.startswith(b"HTTP/1.1 200"):
                continue
            millis.append((time.perf_counter() - asked.pop(fd)) * 1000)
            self.failed += not head.startswith(b"HTTP/1.1 200") or len(body) != len(BODY)
            status = next((line for line in head.decode().splitlines() if line.lower().startswith("cache-status:")), "")
            self.sources["redis" if "REDIS" in status else "memory" if "; hit" in status else "origin"] += 1
            del heard[fd]
            self.free.append(fd)

    def close(self):
        for client in self.sockets.values():
            client.close()


class Fleet(Bench):
    """What all cells share, and what they found."""

    numbers = iter(range(1 << 60))

    def node(self, running, name, redis=None, more=""):
        self.started += 1
        folder = self.work / f"node-{self.started}"
        folder.mkdir()
        text = CONFIG + (SHARED if redis else "") + more
        for key, value in {"NAME": name, "ORIGIN": self.origin, "REDIS": redis}.items():
            text = text.replace(f"@{key}@", str(value))
        file = folder / "tiercel.toml"
        file.write_text(text)
        server = Server(name, [str(self.options.binary), "run", "--config", str(file)], {self.serve}, folder)
        running.callback(server.stop)
        server.admin = int(server.await_said(r"admin http://127\.0\.0\.1:(\d+)"))
        server.await_port(int(server.await_said(r"listener http http://127\.0\.0\.1:(\d+)")))
        self.wait_for(f"{name} is ready", lambda: fetch(server.admin, "/readyz")[0].status == 200)
        return server

    def redis(self, running):
        folder = self.work / f"redis-{self.started}"
        folder.mkdir(exist_ok=True)
        redis = Redis(folder, self.drive)
        running.callback(redis.stop)
        return redis

    def fresh_paths(self, count):
        """Paths that nobody has asked for."""
        return [f"/m/{next(self.numbers)}" for _ in range(count)]

    def seconds_of(self, seconds):
        return int(self.options.rate * seconds)


def share(millis, part):
    millis = sorted(millis)
    return millis[min(len(millis) - 1, int(len(millis) * part))]


# -- Cells ---------------------------------------------------------------------


def propagation(bench):
    """A purge until all three nodes have applied it, without faults: what `wait=fleet` takes, from request to answer."""
    with contextlib.ExitStack() as running:
        redis = bench.redis(running)
        nodes = [bench.node(running, f"node-{number}", redis.port) for number in range(3)]
        clients = [http.client.HTTPConnection("127.0.0.1", node.admin, timeout=20) for node in nodes]
        millis, incomplete = [], 0
        for number in range(bench.options.purges + 10):
            body = json.dumps({"tags": [f"key-{number}"], "wait": "fleet"})
            client = clients[number % 3]
            began = time.perf_counter()
            client.request("POST", "/v1/purge", body, {"Content-Type": "application/json"})
            answer = client.getresponse()
            receipt = json.loads(answer.read())
            if number >= 10:  # the first meet connections that are new
                millis.append((time.perf_counter() - began) * 1000)
                incomplete += receipt.get("complete") is not True or answer.status != 200
            time.sleep(0.01)
        print(f"  {len(millis)} purges: median {share(millis, 0.5):.2f} ms, p95 {share(millis, 0.95):.2f} ms")
        bench.check("purges that were not complete at once", incomplete, 0)
        bench.check("propagation of a purge to three nodes, p99", share(millis, 0.99), 50, " ms", timed=True)


def faulty(bench, make, through_link=False):
    """Misses with an ill Redis, and without any, in turn; and hits while the node finds out."""
    with contextlib.ExitStack() as running:
        redis = bench.redis(running)
        port, between = redis.port, None
        if through_link:
            between = Beside(link, redis.port, cpu=bench.drive)
            running.callback(between.stop)
            port = between.hear()
        ill, plain = bench.node(running, "ill", port), bench.node(running, "plain")
        paced = {server: Paced(server.port) for server in (ill, plain)}
        for one in paced.values():
            running.callback(one.close)
            one.run(bench.fresh_paths(bench.seconds_of(1)), bench.options.rate)
        ask = lambda server, seconds: paced[server].run(bench.fresh_paths(bench.seconds_of(seconds)), bench.options.rate)
        known = bench.fresh_paths(bench.options.rate // 4)
        for server in (ill, plain):
            paced[server].run(known * 2, bench.options.rate)  # the second time from memory
        # Half of what is asked for then is known: who is cut off, or waits for Redis, is not to keep hits back either.
        both = lambda seconds: [path for pair in zip(bench.fresh_paths(bench.seconds_of(seconds) // 2), itertools.cycle(known)) for path in pair]
        mixed = lambda server, seconds: paced[server].run(both(seconds), bench.options.rate)
        worst = max(max(ask(plain, 1)), max(mixed(plain, TRUST + 1.5)))
        make(redis, between)
        first = ask(ill, 1)
        print(f"  the first {len(first)} requests: p50 {share(first, 0.5):.2f} ms, p99 {share(first, 0.99):.2f} ms, worst {max(first):.1f} ms "
              f"(without Redis {worst:.1f} ms)")
        bench.check("worst of the first requests over that without Redis", max(first) - worst, BUDGET_MS + NOISE_MS, " ms", timed=True)
        # The breaker opens, and the node is cut off from the journal.
        paced[ill].sources.clear()
        after = mixed(ill, TRUST + 1.5)
        hits = paced[ill].sources["memory"]
        print(f"  the {TRUST + 1.5:g} s after: p50 {share(after, 0.5):.2f} ms, p99 {share(after, 0.99):.2f} ms, worst {max(after):.1f} ms, {hits} hits")
        bench.check("worst of the requests after over that without Redis", max(after) - worst, BUDGET_MS + NOISE_MS, " ms", timed=True)
        bench.check("of the known paths, hits", hits / (len(after) // 2), 0.99, least=True)
        seen = {ill: [], plain: []}
        for number in range(bench.options.rounds):
            for server in (ill, plain) if number % 2 else (plain, ill):
                seen[server].append(ask(server, bench.options.secs))
        for part, name, bar in (0.5, "p50", 1.15), (0.95, "p95", 1.5):
            with_it, without = (statistics.median(share(one, part) for one in seen[server]) for server in (ill, plain))
            each = " ".join(f"{share(a, part):.2f}/{share(b, part):.2f}" for a, b in zip(seen[ill], seen[plain]))
            print(f"  {name}: {with_it:.3f} ms with the ill Redis, {without:.3f} ms without (rounds: {each})")
            bench.check(f"{name} over that without Redis", with_it / without, bar, timed=True)
        bench.check("requests that failed", paced[ill].failed, 0)


def stopped(bench):
    """Redis is gone."""
    faulty(bench, lambda redis, _: redis.server.stop())


def paused(bench):
    """Redis is there, and says nothing (SIGSTOP)."""
    faulty(bench, lambda redis, _: redis.server.process.send_signal(signal.SIGSTOP))


def slow(bench):
    """Whatever Redis says comes 2 s late."""
    faulty(bench, lambda _, between: between.pipe.send("slow"), through_link=True)


def garbage(bench):
    """Whatever Redis says is nonsense."""
    faulty(bench, lambda _, between: between.pipe.send("garbage"), through_link=True)


def read_only(bench):
    """Redis is a replica and takes no writes."""
    faulty(bench, lambda redis, _: redis.ask("REPLICAOF", "127.0.0.1", str(free_port())))


def full(bench):
    """Redis is out of memory and takes no writes."""
    faulty(bench, lambda redis, _: redis.ask("CONFIG", "SET", "maxmemory", "1"))


def redis_hit(bench):
    """What a hit in Redis costs, against one in memory and against the origin on loopback: 1 KiB, one path after the other."""
    with contextlib.ExitStack() as running:
        redis = bench.redis(running)
        filler, asker = (bench.node(running, name, redis.port) for name in ("filler", "asker"))
        paced = {server: Paced(server.port) for server in (filler, asker)}
        for one in paced.values():
            running.callback(one.close)
            one.run(bench.fresh_paths(200), bench.options.rate)
        paths = bench.fresh_paths(bench.seconds_of(bench.options.secs * bench.options.rounds))
        rows = {}

        def measure(name, server, asked):
            load, before = paced[server], (server.cpu_seconds(), redis.server.cpu_seconds())
            load.sources.clear()
            millis = load.run(asked, bench.options.rate)
            spent = [(now - then) / len(asked) * 1e6 for now, then in zip((server.cpu_seconds(), redis.server.cpu_seconds()), before)]
            rows[name] = millis
            print(f"  {name:<10} p50 {share(millis, 0.5):7.3f} ms  p99 {share(millis, 0.99):7.3f} ms  {spent[0]:6.1f} us of CPU "
                  f"(and {spent[1]:.1f} of Redis')  {dict(load.sources)}")
            return load.sources

        measure("origin", filler, paths)
        last = [-1]

        def settled():
            size, last[0] = int(redis.ask("DBSIZE")[1:]), last[0]
            same, last[0] = size == last[0], size
            time.sleep(0.3)
            return same

        bench.wait_for("everything is written to Redis", settled)
        found = measure("redis", asker, paths)["redis"]
        bench.check("of the paths, found in Redis", found / len(paths), 0.99, least=True)
        found = measure("memory", asker, paths)["memory"]
        bench.check("of the paths, found in memory then", found / len(paths), 0.99, least=True)
        bench.check("p99 of a hit in Redis over the lookup budget", share(rows["redis"], 0.99) / BUDGET_MS, 1, timed=True)


def lease(bench):
    """What a miss costs that asks for the fleet's lease, against one that only looks in Redis: 1 KiB, a path of its own each, in alternating rounds."""
    with contextlib.ExitStack() as running:
        redis = bench.redis(running)
        nodes = {name: bench.node(running, name, redis.port, f"[lease]\nenabled = {enabled}\n")
                 for name, enabled in (("without", "false"), ("with", "true"))}
        paced = {name: Paced(server.port) for name, server in nodes.items()}
        for one in paced.values():
            running.callback(one.close)
            one.run(bench.fresh_paths(200), bench.options.rate)
        rounds = {name: [] for name in nodes}
        for _ in range(bench.options.rounds):
            for name, server in nodes.items():
                asked = bench.fresh_paths(bench.seconds_of(bench.options.secs))
                before = (server.cpu_seconds(), redis.server.cpu_seconds())
                millis = paced[name].run(asked, bench.options.rate)
                spent = [(now - then) / len(asked) * 1e6 for now, then in zip((server.cpu_seconds(), redis.server.cpu_seconds()), before)]
                rounds[name].append((share(millis, 0.5), share(millis, 0.99), *spent))
        medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in rounds.items()}
        for name, (p50, p99, own, of_redis) in medians.items():
            print(f"  {name:<10} p50 {p50:7.3f} ms  p99 {p99:7.3f} ms  {own:6.1f} us of CPU (and {of_redis:.1f} of Redis')")


CELLS = {"propagation": propagation, "stopped": stopped, "paused": paused, "slow": slow, "garbage": garbage, "read-only": read_only, "full": full,
         "redis-hit": redis_hit, "lease": lease}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=HERE.parent / "target/release/tiercel")
    parser.add_argument("--quick", action="store_true", help="little of everything, no bars on time")
    parser.add_argument("--cells", default=",".join(CELLS), help=", ".join(CELLS))
    parser.add_argument("--rounds", type=int, help="of each measurement (default 5)")
    parser.add_argument("--secs", type=float, default=2, help="of each measurement")
    parser.add_argument("--rate", type=int, default=400, help="requests a second")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.purges = 50 if options.quick else 500
    names = options.cells.split(",")
    if unknown := set(names) - set(CELLS):
        sys.exit(f"no such cell: {', '.join(unknown)}; there are {', '.join(CELLS)}")
    missing = [package for tool, package in {"redis-server": "redis-server", "nginx": "nginx-light"}.items() if not shutil.which(tool)]
    if missing:
        sys.exit(f"needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    if not options.binary.is_file():
        sys.exit(f"{options.binary} is not there: cargo build --release")
    options.cpus = sorted(os.sched_getaffinity(0))
    if len(options.cpus) < 2:
        sys.exit("needs two CPUs: one for the nodes, one for the rest")
    with tempfile.TemporaryDirectory(prefix="tiercel-fleet-") as work, contextlib.ExitStack() as running:
        work = Path(work)
        (work / "t").mkdir()
        origin = nginx("origin", ORIGIN, options.cpus[1], work)
        running.callback(origin.stop)
        bench = Fleet(options, work, origin.port)
        os.sched_setaffinity(0, {bench.drive})
        print(f"{options.rate} requests a second, medians of {options.rounds} rounds of {options.secs:g} s, load average {os.getloadavg()[0]:.1f}")
        for name in names:
            print(f"{name}: {CELLS[name].__doc__}", flush=True)
            CELLS[name](bench)
        if bench.failed:
            sys.exit(f"not as it should be: {'; '.join(bench.failed)}")


if __name__ == "__main__":
    main()
