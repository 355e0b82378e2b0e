#!/usr/bin/env python3
"""What hits cost and how they fare while others misbehave: figures with bars, all on loopback.

    cargo build --release && python3 benches/abuse.py [--binary target/release/tiercel] [--quick] [--cells heads,memory]

Needs two CPUs, a limit of 20,000 open files and, for `workers` and `log`, h2load and wrk (Debian: apt-get install nghttp2-client wrk).
What the cells do and how to read the figures: benches/README.md.
"""
import argparse
import asyncio
import collections
import contextlib
import functools
import gc
import json
import multiprocessing
import os
import re
import resource
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from hit import HERE, Server, fetch, load

DEADLINES = {"heads": 10, "bodies": 20}  # seconds; that of bodies is shorter than the default, so that it passes within a round
GRACE = 2.5  # seconds by which an end may come after its deadline: this machine does other things, too
CONFIG = f"""
[server]
workers = @WORKERS@
[listeners.http]
address = "127.0.0.1:0"
h2c = @H2C@
[admin]
address = "127.0.0.1:0"
[memory]
limit = "1GiB"
[limits]
requests_per_connection = 1000000000
header_timeout = "{DEADLINES["heads"]}s"
body_timeout = "{DEADLINES["bodies"]}s"
[upstreams.origin]
endpoints = ["http://127.0.0.1:@ORIGIN@"]
connections = 6000
[sites.main]
upstream = "origin"
[log.access]
target = "@LOG@"
format = "json"
"""
ROUTE = """
[[sites.main.routes]]
exact = "/which"
respond = {{ body = "{}" }}
"""


class Bench:
    """What all cells share, and what they found."""

    def __init__(self, options, work, origin):
        self.options, self.work, self.origin, self.failed = options, work, origin, []
        self.serve, self.drive = options.cpus[:2]
        self.started = 0

    def proxy(self, running, workers=1, descriptors=None, log="off", more="", h2c=False):
        """Starts Tiercel; it ends with `running`."""
        self.started += 1
        folder = self.work / f"tiercel-{self.started}"
        folder.mkdir()
        text = CONFIG + more
        for name, value in {"WORKERS": workers, "ORIGIN": self.origin, "LOG": log, "H2C": str(h2c).lower()}.items():
            text = text.replace(f"@{name}@", str(value))
        file = folder / "tiercel.toml"
        file.write_text(text)
        command = [str(self.options.binary), "run", "--config", str(file)]
        if descriptors:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        cpus = {self.serve} if workers == 1 else {self.serve, self.drive}
        server = Server("tiercel", command, cpus, folder)
        running.callback(server.stop)
        server.file, server.is_hit = file, None
        server.admin = int(server.await_said(r"admin http://127\.0\.0\.1:(\d+)"))
        server.await_port(int(server.await_said(r"listener http http://127\.0\.0\.1:(\d+)")))
        for host in ("bench", f"127.0.0.1:{server.port}") * 2:
            response, body = fetch(server.port, "/hit", Host=host)
        if "; hit" not in response.getheader("Cache-Status", "") or len(body) != 1024:
            sys.exit(f"/hit is none: {response.status} {response.getheaders()}")
        return server

    def check(self, what, value, bar, unit="", timed=False, least=False):
        """Prints a figure and its bar. Figures of time have none with --quick."""
        holds = value >= bar if least else value <= bar
        told = "    " if timed and self.options.quick else "pass" if holds else "FAIL"
        if told == "FAIL":
            self.failed.append(what)
        print(f"  {told}  {what}: {value:.6g}{unit} (at {'least' if least else 'most'} {bar:g}{unit})", flush=True)

    def wait_for(self, what, condition, seconds=30):
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                print(f"  FAIL  {what}: not within {seconds} s", flush=True)
                return self.failed.append(what)
            time.sleep(0.05)


def metric(server, name, labels=""):
    text = fetch(server.admin, "/metrics")[1].decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*{labels}.*\}})? (\S+)$", text, re.M))


def anonymous_bytes(server):
    """Resident memory without mapped files."""
    said = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"RssAnon:\s*(\d+) kB", said)[1]) * 1024


# -- Processes beside this one -------------------------------------------------


class Beside:
    """A function in a process of its own, which is told to stop and then says what it found."""

    def __init__(self, function, *arguments, cpu, gives_way=False):
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=self.run, args=(function, theirs, arguments, cpu, gives_way), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, function, pipe, arguments, cpu, gives_way):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
        os.sched_setaffinity(0, {cpu})
        if gives_way:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # at once: at the lowest priority others wait for a time slice
        function(pipe, *arguments)

    def hear(self, seconds=60):
        if not self.pipe.poll(seconds):
            sys.exit(f"a process beside says nothing for {seconds} s")
        return self.pipe.recv()

    def stop(self):
        self.pipe.send("stop")
        found = self.hear()
        self.process.join()
        return found


def origin(pipe):
    """An origin: `/hit` may be stored, `/slow/...` too after half a second; anything else takes a body in."""
    counts = collections.Counter()

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                path = head.split(" ", 2)[1]
                counts[path] += 1
                length = re.search(r"\r\ncontent-length: (\d+)", head, re.I)
                await reader.readexactly(int(length[1]) if length else 0)
                if path.startswith("/slow/"):
                    await asyncio.sleep(0.5)
                body = json.dumps(counts).encode() if path == "/counts" else b"x" * 1024
                control = "no-store" if path == "/counts" else "max-age=3600"
                writer.write(f"HTTP/1.1 200 OK\r\ncache-control: {control}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        pipe.send(dict(counts))
        os._exit(0)  # whoever is still connected has ended, too

    asyncio.run(run())


OPENINGS = {
    "heads": b"GET /hit HTTP/1.1\r\nHost: bench\r\nX-Slow: ",
    "bodies": b"POST /take HTTP/1.1\r\nHost: bench\r\nContent-Length: 100000\r\n\r\n",
    "idle": b"GET /hit HTTP/1.1\r\nHost: bench\r\n\r\n",
    "silent": b"",
}
DRIPS = {"heads": 3.0, "bodies": 5.0}  # seconds between two bytes


class Crowd:
    """Connections that misbehave in one way; whichever ends is opened again."""

    def __init__(self, port, kind, count, first_source):
        self.port, self.kind, self.count, self.source = port, kind, count, first_source
        self.poll, self.members, self.drips = select.epoll(), {}, collections.deque()
        self.opened = self.greeted = 0
        # Those that are let go by a deadline come spread over it, so that they go spread, too.
        self.each, self.next = DEADLINES.get(kind, 0) / count, time.monotonic()
        self.ends, self.longest = collections.Counter(), 0.0

    def open(self):
        member = socket.socket()
        member.setblocking(False)
        self.opened += 1
        # Many sources: a single one would run out of ports while closed connections linger.
        member.bind((f"127.0.{self.source}.{1 + self.opened % 200}", 0))
        member.connect_ex(("127.0.0.1", self.port))
        self.members[member.fileno()] = [member, None, b""]
        self.poll.register(member, select.EPOLLOUT)

    def greet(self, fd):
        member = self.members[fd]
        self.poll.modify(fd, select.EPOLLIN)
        member[1] = time.monotonic()
        with contextlib.suppress(OSError):
            member[0].send(OPENINGS[self.kind])
        if self.kind in DRIPS:
            self.drips.append((member[1] + DRIPS[self.kind], fd, member))
        if self.kind != "idle":
            self.greeted += 1

    def hear(self, fd):
        member = self.members[fd]
        try:
            said = member[0].recv(65536)
        except OSError:
            return self.end(fd, "reset")
        if not said:
            return self.end(fd, member[2][9:12].decode() or "nothing")
        if not member[2] and self.kind == "idle":
            self.greeted += 1
        member[2] = member[2] or said[:12]

    def end(self, fd, how):
        member = self.members.pop(fd)
        self.poll.unregister(fd)
        member[0].close()
        self.ends[how] += 1
        if member[1]:
            self.longest = max(self.longest, time.monotonic() - member[1])

    def drip(self):
        now = time.monotonic()
        while self.drips and self.drips[0][0] <= now:
            _, fd, member = self.drips.popleft()
            if self.members.get(fd) is member:
                with contextlib.suppress(OSError):
                    member[0].send(b"a")
                self.drips.append((now + DRIPS[self.kind], fd, member))

    def run(self, pipe):
        said = False
        while not pipe.poll():
            # Few at a time, so that they spread, and whoever shares this CPU is not held up.
            for _ in range(min(20, self.count - len(self.members))):
                if self.next > time.monotonic():
                    break
                self.next += self.each
                self.open()
            self.drip()
            for fd, event in self.poll.poll(0.005, 100):
                if event & select.EPOLLOUT and self.members[fd][1] is None:
                    self.greet(fd)
                elif event:
                    self.hear(fd)
            if not said and self.greeted >= self.count:
                said = True
                pipe.send("there")
        for member, _, _ in self.members.values():
            member.close()
        pipe.recv()
        pipe.send((dict(self.ends), self.longest))


def crowd(pipe, *arguments):
    Crowd(*arguments).run(pipe)


# -- The load ------------------------------------------------------------------

REQUEST = b"GET /hit HTTP/1.1\r\nHost: bench\r\n\r\n"
TICK = 0.001


class Paced:
    """Hits at a fixed rate over connections that stay; microseconds from each request to its whole answer."""

    def __init__(self, port, connections, per_second):
        self.batch = max(1, round(per_second * TICK))
        self.poll = select.epoll()
        self.sockets = {}
        for _ in range(connections):
            client = socket.create_connection(("127.0.0.1", port))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets[client.fileno()] = client
            self.poll.register(client, select.EPOLLIN)
        self.free = collections.deque(self.sockets)
        self.asked, self.micros, self.held_back = {}, [], 0
        self.size = None

    def run(self, seconds):
        """Median and 95th percentile; how many requests had to wait for a free connection."""
        self.micros, self.held_back = [], 0
        gc.disable()
        due = time.monotonic()
        end = due + seconds
        while due < end:
            for _ in range(self.batch):
                self.ask()
            due = max(due + TICK, time.monotonic() - 10 * TICK)  # what was missed by far is not made up for
            while self.asked and time.monotonic() < due:
                self.take(0.001)
            if (left := due - time.monotonic()) > 0:
                time.sleep(left)
        while self.asked:
            self.take(1)
        gc.enable()
        self.micros.sort()
        return self.micros[len(self.micros) // 2], self.micros[len(self.micros) * 95 // 100], len(self.micros), self.held_back

    def ask(self):
        if not self.free:
            self.held_back += 1
            return
        fd = self.free.popleft()
        self.asked[fd] = time.perf_counter_ns()
        self.sockets[fd].send(REQUEST)

    def take(self, timeout):
        for fd, _ in self.poll.poll(timeout):
            said = self.sockets[fd].recv(16384)
            now = time.perf_counter_ns()
            if not said.startswith(b"HTTP/1.1 200") or abs(len(said) - (self.size or len(said))) > 8:
                sys.exit(f"not a hit: {said[:200]}")
            self.size = len(said)
            self.micros.append((now - self.asked.pop(fd)) / 1000)
            self.free.append(fd)

    def close(self):
        for client in self.sockets.values():
            client.close()


# -- Cells ---------------------------------------------------------------------


def misbehaviour(bench, kind, count, connections=64, **how):
    """Hits with and without a crowd, in turn."""
    options = bench.options
    with contextlib.ExitStack() as running:
        server = bench.proxy(running, **how)
        paced = Paced(server.port, connections, options.rate)
        running.callback(paced.close)
        paced.run(1)
        seen = {False: [], True: []}
        ends, longest, held, before = collections.Counter(), 0.0, 0, anonymous_bytes(server)
        spent, began = server.cpu_seconds(), time.monotonic()
        paced.run(options.secs)
        share = (server.cpu_seconds() - spent) / (time.monotonic() - began)
        print(f"  {options.rate} hits a second over {connections} connections take {share:.0%} of the server's core")
        for number in range(options.rounds):
            seen[False].append(paced.run(options.secs))
            people = Beside(crowd, server.port, kind, count, 10 + number, cpu=bench.drive, gives_way=True)
            people.hear()
            # Deadlines pass all the while, and whoever was let go comes again.
            seen[True].append(paced.run(options.secs * (2 if kind in DRIPS else 1)))
            held = max(held, anonymous_bytes(server))
            said, lasted = people.stop()
            ends.update(said)
            longest = max(longest, lasted)
            if how.get("descriptors"):
                bench.wait_for("descriptors are free again", lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) < how["descriptors"] - 8)
            bench.wait_for("only the load is connected again", lambda: metric(server, "tiercel_connections") == connections)
            paced.run(0.5)
        report_latency(bench, seen)
        print(f"  ends: {', '.join(f'{how} {number}' for how, number in sorted(ends.items())) or 'none'}; memory {before >> 20} MiB before, "
              f"{held >> 20} MiB with the crowd ({(held - before) / count / 1024:.1f} KiB each), {anonymous_bytes(server) >> 20} MiB after")
        paced.close()
        bench.wait_for("nobody is connected at the end", lambda: metric(server, "tiercel_connections") == 0)
        return server, ends, longest, held - before


def report_latency(bench, seen):
    for index, name, bar in (0, "p50", 1.15), (1, "p95", 1.5):
        alone, crowded = (statistics.median(one[index] for one in seen[key]) for key in (False, True))
        each = " ".join(f"{on[index]:.0f}/{off[index]:.0f}" for off, on in zip(seen[False], seen[True]))
        print(f"  {name}: {crowded:.0f} us with the crowd, {alone:.0f} us without (rounds: {each})")
        bench.check(f"{name} with the crowd over without", crowded / alone, bar, timed=True)
    asked, held_back = (sum(one[index] for both in seen.values() for one in both) for index in (2, 3))
    print(f"  {asked} hits, {held_back} of them not sent in time for want of a connection")


def deadlines(bench, ends, longest, seconds):
    others = sum(number for how, number in ends.items() if how != "408")
    bench.check("connections that ended by their deadline (408)", ends.get("408", 0), bench.options.count // 8, least=True)
    bench.check("connections that ended otherwise", others, 0)
    bench.check("longest that one lasted", longest, seconds + GRACE, " s", timed=True)


def heads(bench):
    """Slow heads: a byte every three seconds."""
    _, ends, longest, grown = misbehaviour(bench, "heads", bench.options.count)
    deadlines(bench, ends, longest, DEADLINES["heads"])
    bench.check("memory per slow head", grown / bench.options.count / 1024, 16, " KiB")


def bodies(bench):
    """Slow bodies: a long one announced, a byte every five seconds, each on its way to the origin."""
    _, ends, longest, grown = misbehaviour(bench, "bodies", bench.options.count)
    deadlines(bench, ends, longest, DEADLINES["bodies"] + 1)
    bench.check("memory per slow body, its connection to the origin included", grown / bench.options.count / 1024, 64, " KiB")


def idle(bench):
    """Idle connections, kept after one request each."""
    _, ends, _, _ = misbehaviour(bench, "idle", bench.options.count)
    bench.check("connections that ended", sum(ends.values()), 0)


def descriptors(bench):
    """The limit of descriptors, reached and left again."""
    server, _, _, _ = misbehaviour(bench, "silent", 1000, connections=8, descriptors=64)
    said = server.said().count("cannot accept")
    bench.check("lines in the log that say so", said, 1, least=True)
    bench.check("lines in the log that say so", said, 20 * bench.options.rounds)


def memory(bench):
    """What an idle connection costs."""
    count = bench.options.idle
    with contextlib.ExitStack() as running:
        server = bench.proxy(running)
        warm = Beside(crowd, server.port, "idle", 100, 10, cpu=bench.drive)
        warm.hear()
        warm.stop()
        bench.wait_for("nobody is connected", lambda: metric(server, "tiercel_connections") == 0)
        before = anonymous_bytes(server)
        people = [Beside(crowd, server.port, "idle", count // 2, 20 + number, cpu=bench.drive) for number in range(2)]
        for one in people:
            one.hear()
        at_once = anonymous_bytes(server)
        bench.wait_for("memory is given back", lambda: (anonymous_bytes(server) - before) / count < 4096, 10)
        time.sleep(1)
        grown = anonymous_bytes(server) - before
        bench.check("connections", metric(server, "tiercel_connections"), count, least=True)
        for one in people:
            one.stop()
        print(f"  {before >> 10} KiB before, {(at_once - before) / count / 1024:.2f} KiB each when the last was answered")
        bench.check(f"memory of each of {count} idle connections", grown / count / 1024, 4, " KiB")
        bench.wait_for("nobody is connected", lambda: metric(server, "tiercel_connections") == 0)


def reload(bench):
    """Connections across reloads: every one of them is answered."""
    connects, reloads, threads = bench.options.connects, bench.options.reloads, 4
    answers, errors, done, lock = collections.Counter(), [], [0], threading.Lock()
    with contextlib.ExitStack() as running:
        server = bench.proxy(running, workers=2, more=ROUTE.format("one"))
        texts = [server.file.read_text(), server.file.read_text().replace('"one"', '"two"')]

        def ask(number):
            for turn in range(connects // threads):
                try:
                    with socket.create_connection(("127.0.0.1", server.port), 10, (f"127.0.{40 + number}.{1 + turn % 200}", 0)) as client:
                        client.sendall(b"GET /which HTTP/1.1\r\nHost: bench\r\n\r\n")
                        said = client.recv(4096)
                        answers[(said[9:12] + b" " + said[-3:]).decode()] += 1
                except OSError as error:
                    errors.append(repr(error))
                with lock:
                    done[0] += 1

        askers = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
        for asker in askers:
            asker.start()
        for number in range(reloads):
            while done[0] < connects * number // reloads:
                time.sleep(0.0005)
            server.file.write_text(texts[(number + 1) % 2])
            status = post(server.admin, "/v1/reload")
            if status != 200:
                errors.append(f"reload: {status}")
        for asker in askers:
            asker.join()
        print(f"  {sum(answers.values())} connections across {reloads} reloads were answered: {dict(answers)}; {errors[:3] or 'no errors'}")
        bench.check("connections that were reset or answered wrongly",
                    connects // threads * threads - answers["200 one"] - answers["200 two"] + len(errors), 0)
        bench.check("answers by the less common of two configurations", min(answers["200 one"], answers["200 two"]), 1, least=True)


def post(port, path):
    import http.client
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, "{}", {"content-type": "application/json"})
    return connection.getresponse().status


def workers(bench):
    """Two workers: neither is left behind, and both together cost no more for each request than one alone."""
    with contextlib.ExitStack() as running:
        alone, both = (bench.proxy(running, workers=count, h2c=True) for count in (1, 2))
        for name, connections, arguments in [("HTTP/1.1, 64 connections", 64, ["--h1"]), ("HTTP/1.1, 16 connections", 16, ["--h1"]),
                                             ("HTTP/2, 16 connections", 16, ["-m", "100"])]:
            shares, costs = [], []
            for _ in range(bench.options.rounds):
                one = h2load(alone, bench, connections, arguments)
                before = by_worker(both)
                two = h2load(both, bench, connections, arguments)
                counts = [int(late - early) for early, late in zip(before, by_worker(both))]
                shares.append(min(counts) / max(counts))
                costs.append(two / one)
                print(f"  {name}: {counts[0]} and {counts[1]} requests, {two:.1f} us each, {one:.1f} us with one worker")
            bench.check(f"{name}: requests of the one worker over the other's, median", statistics.median(shares), 0.6, timed=True, least=True)
            if connections == 64:  # with fewer a worker finds less to do at a time, and each look costs as much
                bench.check(f"{name}: CPU of each request over that with one worker, median", statistics.median(costs), 1.15, timed=True)


def by_worker(server):
    return [metric(server, "tiercel_worker_requests_total", f'worker="{number}"') for number in range(2)]


def h2load(server, bench, connections, arguments):
    """CPU microseconds of the server for each request."""
    command = ["h2load", "-t1", f"-c{connections}", f"-D{round(bench.options.secs)}", *arguments, f"http://127.0.0.1:{server.port}/hit"]
    before = server.cpu_seconds()
    said = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {bench.drive}), check=True).stdout
    spent = server.cpu_seconds() - before
    good = int(re.search(r"(\d+) succeeded", said)[1])
    if not good or " 0 failed, 0 errored" not in said or not re.search(r"status codes: \d+ 2xx, 0 3xx, 0 4xx, 0 5xx", said):
        sys.exit(f"{server.name}: not all was well\n{said}")
    return spent / good * 1e6


def stampede(bench):
    """Followers of one cold and slow response get it right after their leader."""
    with contextlib.ExitStack() as running:
        server = bench.proxy(running)
        for count in 64, 500:
            rounds = [together(bench, server, count, number) for number in range(bench.options.rounds)]
            lags = [statistics.median(lag) for lag, _ in rounds]
            late = [max(lag - 0.012 * position for position, lag in enumerate(sorted(lag), 1)) for lag, _ in rounds]
            last = statistics.median(max(lag) for lag, _ in rounds)
            spread = statistics.median((max(*lag, 0) - min(*lag, 0)) / count for lag, _ in rounds)
            cost = statistics.median(cost for _, cost in rounds)
            print(f"  {count} followers: the median ends {statistics.median(lags):.3f} ms after the leader, the last {last:.3f} ms (before it where "
                  f"negative);\n  from the first answer to the last {spread * 1000:.1f} us each, of which this client takes {cost * 1000:.1f} us")
            bench.check("requests that reached the origin for one response", metric_of_origin(bench, count), 1)
            if count == 64:
                bench.check("median of the followers after the leader", statistics.median(lags), 1, " ms", timed=True)
            else:
                bench.check("worst of the followers after the leader, less 12 us for each before it", statistics.median(late), 1, " ms", timed=True)


def together(bench, server, followers, number):
    """Milliseconds after the leader at which each follower had its answer; what reading one costs this client."""
    request = f"GET /slow/{followers}-{number} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    clients, poll = {}, select.epoll()
    for position in range(followers + 1):
        client = socket.create_connection(("127.0.0.1", server.port))
        clients[client.fileno()] = client
        poll.register(client, select.EPOLLIN)
    leader = next(iter(clients))
    for fd, client in clients.items():
        client.send(request)
        if fd == leader:
            time.sleep(0.05)
    ended, busy, stamp = {}, 0, time.perf_counter_ns
    gc.disable()
    while len(ended) < len(clients):
        ready = poll.poll(10, 1024)
        if not ready:
            sys.exit(f"{len(clients) - len(ended)} of the stampede got no answer")
        began = stamp()
        for fd, _ in ready:
            if len(clients[fd].recv(4096)) < 1024:
                sys.exit("an answer came in parts")
            ended[fd] = stamp()
        busy += stamp() - began
    gc.enable()
    for client in clients.values():
        client.close()
    first = ended.pop(leader)
    return [(at - first) / 1e6 for at in ended.values()], busy / 1e6 / len(clients)


def metric_of_origin(bench, count):
    counts = json.loads(fetch(bench.origin, "/counts")[1])
    return max(number for path, number in counts.items() if path.startswith(f"/slow/{count}-"))


def log(bench):
    """What a line of the access log costs."""
    options = bench.options
    with contextlib.ExitStack() as running:
        file = bench.work / "access.log"
        servers = {"off": bench.proxy(running), "json": bench.proxy(running, log=file)}
        micros = collections.defaultdict(list)
        for server in servers.values():
            load(server, "/hit", 1, 64, bench.drive)
        for number in range(options.rounds):
            for name, server in list(servers.items())[:: 1 if number % 2 == 0 else -1]:
                micros[name].append(load(server, "/hit", round(options.secs), 64, bench.drive)[2])
                os.truncate(file, 0)
        off, on = (statistics.median(micros[name]) for name in ("off", "json"))
        print(f"  {off:.2f} us without, {on:.2f} us with the log (rounds: "
              f"{' '.join(f'{late:.2f}/{early:.2f}' for early, late in zip(micros['off'], micros['json']))})")
        bench.check("CPU per hit with the log over without", on / off, 1.08, timed=True)
        bench.check("lines that were lost", metric(servers["json"], "tiercel_access_log_lost_total"), 0)


CELLS = {cell.__name__: cell for cell in (heads, bodies, idle, descriptors, memory, reload, workers, stampede, log)}
NEEDS = {"workers": "h2load", "log": "wrk"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=HERE.parent / "target/release/tiercel")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, no bars on time, no cells that need h2load or wrk")
    parser.add_argument("--cells", help=", ".join(CELLS))
    parser.add_argument("--rounds", type=int, help="of each measurement (default 5)")
    parser.add_argument("--secs", type=float, default=3, help="of each measurement without deadlines")
    parser.add_argument("--rate", type=int, default=5000, help="hits a second beside a crowd")
    options = parser.parse_args()
    quick = options.quick
    options.rounds = options.rounds or (1 if quick else 5)
    options.count, options.idle, options.connects, options.reloads = (500, 2000, 1000, 10) if quick else (5000, 10_000, 10_000, 100)
    names = options.cells.split(",") if options.cells else [name for name in CELLS if not (quick and name in NEEDS)]
    if unknown := set(names) - set(CELLS):
        sys.exit(f"no such cell: {', '.join(unknown)}; there are {', '.join(CELLS)}")
    if missing := [NEEDS[name] for name in names if name in NEEDS and not shutil.which(NEEDS[name])]:
        sys.exit(f"needs {' and '.join(missing)}: apt-get install nghttp2-client wrk")
    if not options.binary.is_file():
        sys.exit(f"{options.binary} is not there: cargo build --release")
    options.cpus = sorted(os.sched_getaffinity(0))
    if len(options.cpus) < 2:
        sys.exit("needs two CPUs: one for the server, one for the load")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < 2.5 * options.count + 1000:
        sys.exit(f"needs a limit of {2.5 * options.count + 1000:.0f} open files: ulimit -Hn says {most}")
    drive = options.cpus[1]
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # so that the access log's disk is not what is measured
    with tempfile.TemporaryDirectory(prefix="tiercel-abuse-", dir=where) as work, contextlib.ExitStack() as running:
        upstream = Beside(origin, cpu=drive, gives_way=True)
        running.callback(upstream.stop)
        bench = Bench(options, Path(work), upstream.hear())
        os.sched_setaffinity(0, {drive})
        print(f"medians of {options.rounds} rounds, load average {os.getloadavg()[0]:.1f}")
        for name in names:
            print(f"{name}: {CELLS[name].__doc__}", flush=True)
            CELLS[name](bench)
        if bench.failed:
            sys.exit(f"not as it should be: {'; '.join(bench.failed)}")


if __name__ == "__main__":
    main()
