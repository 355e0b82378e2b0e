#!/usr/bin/env python3
"""Which lines of src/invalidation the simulation of the fleet's journal runs, by file.

    tests/fleet-simulation/coverage.py [SEEDS]      default: 3000; needs rustup component add llvm-tools

Counted are the lines of the program: not the simulation, and not test modules. Two shares come last: of all of it, and of it without
src/invalidation/stream, the way to a real Redis, which is no part of the simulation (tests/it/fleet runs it): its lines of code, Rust and
Lua, count as not run. Fails where the second share is below 95 %.
"""
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = HERE.parent.parent / "src" / "invalidation"
LEAST = 95.0


def run(*command, **environment):
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment).stdout


def end_of_program(source):
    """The line at which a file's test module begins."""
    lines = source.read_text().splitlines()
    for number, (line, following) in enumerate(zip(lines, lines[1:]), start=1):
        if line == "#[cfg(test)]" and following.startswith("mod ") and following.endswith("{"):
            return number
    return len(lines) + 1


def lines_of_code(source):
    """Neither blank nor comment, before the test module."""
    lines = (line.strip() for line in source.read_text().splitlines()[: end_of_program(source) - 1])
    return sum(bool(line) and not line.startswith(("//", "--", "#!")) for line in lines)


def main():
    seeds = sys.argv[1] if len(sys.argv) > 1 else "3000"
    host = next(line.split()[1] for line in run("rustc", "-vV").splitlines() if line.startswith("host:"))
    tools = pathlib.Path(run("rustc", "--print", "sysroot").strip()) / "lib" / "rustlib" / host / "bin"
    with tempfile.TemporaryDirectory() as folder:
        profile = f"{folder}/run.profraw"
        target = os.environ.get("CARGO_TARGET_DIR", str(HERE.parent.parent / "target" / "coverage"))
        settings = {"RUSTFLAGS": "-C instrument-coverage", "CARGO_TARGET_DIR": target, "LLVM_PROFILE_FILE": profile, "SEEDS": seeds}
        cargo = ["cargo", "test", "--release", "--locked", "--manifest-path", str(HERE / "Cargo.toml")]
        built = run(*cargo, "--no-run", "--message-format", "json", **settings)
        program = next(part.split('"')[0] for part in built.split('"executable":"')[1:])
        run(program, "no_node_serves", **settings)
        run(str(tools / "llvm-profdata"), "merge", "-sparse", profile, "-o", f"{folder}/merged")
        listing = run(str(tools / "llvm-cov"), "export", program, f"-instr-profile={folder}/merged", "--format=lcov")
    files, source = {}, None
    for line in listing.splitlines():
        if line.startswith("SF:"):
            source = pathlib.Path(line[3:]).resolve()
        elif line.startswith("DA:"):
            number, count = map(int, line[3:].split(",")[:2])
            lines = files.setdefault(source, {})
            lines[number] = max(lines.get(number, 0), count)
    every = run_of_all = 0
    for source, lines in sorted(files.items()):
        if SOURCES not in source.parents or "simulation" in source.parts or source.name == "model.rs":
            continue
        end = end_of_program(source)
        lines = {number: count for number, count in lines.items() if number < end}
        if not lines:
            continue
        ran = sum(count > 0 for count in lines.values())
        missed = " ".join(str(number) for number, count in sorted(lines.items()) if count == 0)
        print(f"{100 * ran / len(lines):5.1f} %  {ran:4} of {len(lines):4}  {source.relative_to(SOURCES)}  {missed}")
        every, run_of_all = every + len(lines), run_of_all + ran
    with_stream = every + sum(lines_of_code(source) for source in (SOURCES / "stream").iterdir() if source.suffix in {".rs", ".lua"})
    share = 100 * run_of_all / every
    print(f"{100 * run_of_all / with_stream:5.1f} %  {run_of_all} of {with_stream}  with stream, of which nothing runs here")
    print(f"{share:5.1f} %  {run_of_all} of {every}  without it")
    sys.exit(share < LEAST)


main()
