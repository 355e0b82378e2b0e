#!/usr/bin/env python3
"""Memory bounds of a Tiercel binary, read from /proc: large transfers do not grow it, and `--memory` holds.

    python3 tests/memory.py --binary target/release/tiercel [--quick | --full | --scale N]

--full is what the project promises: 1 GiB down and up with growth below 64 MiB; a limit of 256 MiB and three times that
in 1 KiB objects, then in 1 MiB objects, resident never above 1.25 times the limit plus 48 MiB. --quick does the same
with a quarter of the bytes and of the limit, --scale N with an Nth. The objects must be there, too: a cache that stores
nothing holds every bound.

What a tier says that it stores must be what the process has grown by: between WEIGHT_LOW and WEIGHT_HIGH of it, for
objects of 1 KiB and of 64 KiB.
"""
import argparse
import asyncio
import re
import signal
import subprocess
import sys
import threading
import urllib.request

KIB, MIB = 1024, 1024 * 1024
PIECE = b"z" * (256 * KIB)
WEIGHT_LOW, WEIGHT_HIGH = 0.7, 1.3


class Origin(asyncio.Protocol):
    """/k/N: 1 KiB; /s/N: 64 KiB; /m/N: 1 MiB; /big/BYTES and /chunked/BYTES: that many bytes; PUT: read and answered."""

    def connection_made(self, transport):
        self.transport, self.buffer, self.rest, self.writable = transport, b"", 0, asyncio.Event()
        self.writable.set()

    def connection_lost(self, error):
        self.writable.set()

    def pause_writing(self):
        self.writable.clear()

    def resume_writing(self):
        self.writable.set()

    def data_received(self, data):
        if self.rest:
            taken = min(self.rest, len(data))
            self.rest -= taken
            data = data[taken:]
            if self.rest:
                return
            self.answer(b"", b"no-store")
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            self.request(head)

    def request(self, head):
        path = head.split(b" ", 2)[1].decode()
        if head.startswith(b"PUT"):
            length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
            self.rest = length - len(self.buffer)
            self.buffer = b""
            if not self.rest:
                self.answer(b"", b"no-store")
        elif path.startswith("/k/"):
            self.answer(PIECE[:KIB])
        elif path.startswith("/s/"):
            self.answer(PIECE[:64 * KIB])
        elif path.startswith("/m/"):
            self.answer(PIECE * 4)
        else:
            asyncio.ensure_future(self.stream(int(path.rsplit("/", 1)[1]), "chunked" in path))

    def answer(self, body, control=b"public, max-age=3600"):
        self.transport.write(b"HTTP/1.1 200 OK\r\ncache-control: %s\r\ncontent-length: %d\r\n\r\n" % (control, len(body)) + body)

    async def stream(self, length, chunked):
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % length
        self.transport.write(b"HTTP/1.1 200 OK\r\ncache-control: public, max-age=3600\r\n" + framing + b"\r\n\r\n")
        for _ in range(length // len(PIECE)):
            await self.writable.wait()
            if self.transport.is_closing():
                return
            self.transport.write(b"%x\r\n" % len(PIECE) + PIECE + b"\r\n" if chunked else PIECE)
        if chunked:
            self.transport.write(b"0\r\n\r\n")


class Proxy:
    def __init__(self, binary, origin, limit):
        self.process = subprocess.Popen(
            [binary, "run", "--upstream", f"http://127.0.0.1:{origin}", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--memory", f"{limit // MIB}MiB"],
            stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if found := re.match(r"listener \S+ http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
            if found := re.match(r"admin (http://127.0.0.1:\d+)", line):
                self.admin = found[1]
                break
        else:
            self.process.wait()
            sys.exit("memory: tiercel did not start")
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def status(self, name):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith(name + ":"):
                return int(line.split()[1]) * KIB

    def reset_peak(self):
        open(f"/proc/{self.process.pid}/clear_refs", "w").write("5")

    def metric(self, name):
        """The sum of a gauge's series."""
        with urllib.request.urlopen(f"{self.admin}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(name + r"[{ ]", line))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            self.process.kill()
            self.process.wait()
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            sys.exit("memory: tiercel did not end")
        if code:
            sys.exit(f"memory: tiercel ended with {code}")


async def fetch_all(port, paths, body_bytes, connections=16, depth=16):
    """GETs every path, pipelined; checks that each body has its length."""
    it = iter(paths)

    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4 * MIB)
        while batch := [p for _, p in zip(range(depth), it)]:
            writer.write(b"".join(b"GET %s HTTP/1.1\r\nhost: m\r\n\r\n" % p.encode() for p in batch))
            for _ in batch:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
                assert head.startswith(b"HTTP/1.1 200") and length == body_bytes, head
                await reader.readexactly(length)
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))


async def download(port, path, expected):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %s HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n" % path.encode())
    await reader.readuntil(b"\r\n\r\n")
    got = 0
    while data := await reader.read(MIB):
        got += len(data)
    writer.close()
    assert got >= expected, f"{path}: {got} of {expected} bytes"


async def upload(port, length):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PUT /up HTTP/1.1\r\nhost: m\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % length)
    for _ in range(length // len(PIECE)):
        writer.write(PIECE)
        await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    writer.close()


async def patiently(transfer):
    """A transfer that hangs fails, instead of the whole run."""
    await asyncio.wait_for(transfer, 900)


async def settled(proxy):
    """Bytes that the tier says it stores, and bytes of the process, once the tier has weighed all that came."""
    stored, deadline = -1, asyncio.get_running_loop().time() + 60
    while asyncio.get_running_loop().time() < deadline:
        now = proxy.metric("tiercel_tier_stored_bytes")
        if now == stored and proxy.metric("tiercel_fill_bytes") == 0:
            return now, proxy.status("VmRSS")
        stored = now
        await asyncio.sleep(1.5)  # housekeeping comes once a second
    sys.exit("memory: what is stored keeps changing")


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--scale", type=int, help="divide bytes and limit by this: to try the script itself")
    options = parser.parse_args()
    share = options.scale or (1 if options.full else 4)
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", 0, backlog=512)
    origin = server.sockets[0].getsockname()[1]
    bad = 0

    def verdict(what, peak, bound):
        nonlocal bad
        bad += peak > bound
        print(f"memory: {what}: {peak / MIB:.0f} MiB, bound {bound / MIB:.0f} MiB{'' if peak <= bound else '  EXCEEDED'}", flush=True)

    with Proxy(options.binary, origin, 512 * MIB) as proxy:
        await patiently(fetch_all(proxy.port, [f"/k/{n}" for n in range(200)], KIB))
        size = 1024 * MIB // share
        for what, transfer in (("download", download(proxy.port, f"/big/{size}", size)),
                               ("chunked download", download(proxy.port, f"/chunked/{size}", size)),
                               ("upload", upload(proxy.port, size))):
            proxy.reset_peak()
            before = proxy.status("VmRSS")
            await patiently(transfer)
            verdict(f"growth by one {what} of {size // MIB} MiB", max(0, proxy.status("VmHWM") - before), 64 * MIB)
    for what, prefix, size in (("1 KiB", "k", KIB), ("64 KiB", "s", 64 * KIB)):
        # Room for all, so that nothing is evicted; the first part is no part of the growth: it warms pools and buffers.
        goal = 192 * MIB // share
        with Proxy(options.binary, origin, 1024 * MIB) as proxy:
            first, last = goal // 4 // size, goal // 4 // size + goal // size
            await patiently(fetch_all(proxy.port, (f"/{prefix}/{n}" for n in range(first)), size, depth=4))
            before = await settled(proxy)
            await patiently(fetch_all(proxy.port, (f"/{prefix}/{n}" for n in range(first, last)), size, depth=4))
            after = await settled(proxy)
        stored, grown = (a - b for a, b in zip(after, before))
        ratio = grown / stored if stored else 0
        true = WEIGHT_LOW <= ratio <= WEIGHT_HIGH and stored >= goal
        bad += not true
        print(f"memory: {last - first} objects of {what}: {grown / MIB:.1f} MiB for {stored / MIB:.1f} MiB that are said to be stored, "
              f"{ratio:.2f}, bound {WEIGHT_LOW} to {WEIGHT_HIGH}{'' if true else '  WRONG WEIGHTS'}", flush=True)
    limit = 256 * MIB // share
    with Proxy(options.binary, origin, limit) as proxy:
        for what, prefix, size in (("1 KiB", "k", KIB), ("1 MiB", "m", MIB)):
            count = 3 * limit // size
            await patiently(fetch_all(proxy.port, (f"/{prefix}/{n}" for n in range(count)), size, depth=16 if size == KIB else 1))
            verdict(f"{count} objects of {what} under --memory {limit // MIB}MiB", proxy.status("VmHWM"), int(1.25 * limit) + 48 * MIB)
            stored, room = proxy.metric("tiercel_tier_stored_bytes"), proxy.metric("tiercel_tier_limit_bytes")
            full = stored >= room / 4
            bad += not full
            print(f"memory:   of which stored: {stored / MIB:.0f} of {room / MIB:.0f} MiB{'' if full else '  NOT FULL'}", flush=True)
    sys.exit(1 if bad else 0)


asyncio.run(main())
