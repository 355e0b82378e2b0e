#!/usr/bin/env python3
"""Instructions per hit, and per request that passes, counted by valgrind: the same on a busy machine as on an idle one.

    python3 benches/counts.py [--check | --record] [--rounds N]
    python3 benches/counts.py --stores

Each case runs with COUNT and with twice as many hits; the difference divided by COUNT is the cost of a hit, without that of
connecting. What comes before, the start with its calibration of clocks, is not counted at all. So that only this crate has
to be built for it, it stands on the dependencies that the tests use (profile.dev in Cargo.toml), those that a hit runs
optimised like a release.

--check fails where a case costs more than 5 % above benches/counts.json, at the median of five where it once did; --record
writes that file. --rounds repeats and tells the spread (below 0.3 %: hash seeds, and when the cache does its housekeeping).
The figures compare this program with itself: they move with the compiler and with what the processor offers (AVX2), so record
anew after a change of either, in a commit of its own.

--stores tells instead what a store and a purge by key cost with ten thousand, a hundred thousand and a million stored responses
(benches/stores.rs), and fails where one of them costs more than a quarter more than with the fewest. That takes minutes.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASELINE = ROOT / "benches" / "counts.json"
# What callgrind wrote, for callgrind_annotate.
PROFILES = ROOT / "target" / "counts"
CASES = ["plain", "browser", "conditional", "logged", "passed"]
COUNT = 4000
TOLERANCE = 0.05
STORED = [10_000, 100_000, 1_000_000]
# Actions that benches/stores.rs does at a time.
BATCH = 1000
STORED_TOLERANCE = 0.25


# These change this crate alone: Cargo.toml says what holds for the dependencies.
PROFILE = {"CODEGEN_UNITS": "1", "DEBUG_ASSERTIONS": "false", "INCREMENTAL": "false", "OPT_LEVEL": "3", "OVERFLOW_CHECKS": "false"}


def build(bench):
    environment = os.environ | {f"CARGO_PROFILE_DEV_{key}": value for key, value in PROFILE.items()}
    command = [os.environ.get("CARGO", "cargo"), "bench", "--locked", "--profile", "dev", "--bench", bench, "--no-run"]
    command.append("--message-format=json")
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    messages = [json.loads(line) for line in out.splitlines()]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == bench)


def start(binary, function, *arguments):
    profile = f"--callgrind-out-file={PROFILES}/{'-'.join(arguments).lstrip('-')}.callgrind"
    command = ["valgrind", "--tool=callgrind", f"--toggle-collect=*{function}", profile, binary, *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def instructions(process):
    _, err = process.communicate(timeout=600)
    found = re.search(r"Collected : (\d+)", err)
    # None at all: the function was not found, as in a binary without symbols.
    if process.returncode or not found or int(found[1]) == 0:
        sys.exit(f"{' '.join(process.args)} failed:\n{err}")
    return int(found[1])


def per_hit(binary, case):
    once, twice = [start(binary, "HitPath::hits", case, str(count)) for count in (COUNT, 2 * COUNT)]
    return round((-instructions(once) + instructions(twice)) / COUNT)


def compare(counts, baseline):
    """Lines of a table, and whether a case grew too much."""
    failed = False
    for case, count in counts.items():
        known = baseline["instructions_per_hit"].get(case)
        if known is None:
            print(f"{case:12} {count:8}  no baseline")
            failed = True
            continue
        grew = count > known * (1 + TOLERANCE)
        failed |= grew
        print(f"{case:12} {count:8}  baseline {known:8}  {count / known - 1:+7.2%}{'  TOO MUCH' if grew else ''}")
    return failed


def stores():
    """Whether an action costs more the more is stored."""
    binary, failed = build("stores"), False
    for action in ["store", "purge"]:
        counts = [instructions(start(binary, "stores::counted", "--instructions", action, str(stored))) / BATCH for stored in STORED]
        for stored, count in zip(STORED, counts):
            too_much = count > counts[0] * (1 + STORED_TOLERANCE)
            failed |= too_much
            print(f"{action:6} {stored:9} stored {count:10.0f}  {count / counts[0] - 1:+7.2%}{'  TOO MUCH' if too_much else ''}", flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="fail where a case costs more than 5 %% above the baseline")
    mode.add_argument("--record", action="store_true", help="write the baseline")
    mode.add_argument("--stores", action="store_true", help="of a store and of a purge, by how much is stored")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    PROFILES.mkdir(parents=True, exist_ok=True)
    if options.stores:
        sys.exit("the more is stored the more it costs" if stores() else 0)
    binary = build("hit")
    rounds = {case: sorted(per_hit(binary, case) for _ in range(options.rounds)) for case in CASES}
    if options.check:
        # When the thread of the log takes its lines is up to the machine: one that is busy is asked again.
        known = json.loads(BASELINE.read_text())["instructions_per_hit"]
        for case in (case for case, counts in rounds.items() if counts[len(counts) // 2] > known.get(case, 0) * (1 + TOLERANCE)):
            rounds[case] = sorted(rounds[case] + [per_hit(binary, case) for _ in range(4)])
    if options.rounds > 1:
        for case, counts in rounds.items():
            print(f"{case:12} {counts[0]} to {counts[-1]}: spread {counts[-1] / counts[0] - 1:.3%}")
    counts = {case: counts[len(counts) // 2] for case, counts in rounds.items()}
    rustc = subprocess.run(["rustc", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    if options.record:
        BASELINE.write_text(json.dumps({"rustc": rustc, "instructions_per_hit": counts}, indent=2) + "\n")
    baseline = json.loads(BASELINE.read_text())
    failed = compare(counts, baseline)
    if rustc != baseline["rustc"]:
        print(f"note: the baseline is of {baseline['rustc']}, this is {rustc}")
    if options.check and failed:
        sys.exit("a hit costs more instructions than it did: make it cheaper, or say in the commit why not and use --record")


if __name__ == "__main__":
    main()
