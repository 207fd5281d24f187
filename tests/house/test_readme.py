"""
The README tells the truth: its console blocks run, in order, as a newcomer would type them.

A section is one terminal. A command that serves until Ctrl-C goes on beside the sections after it. A block that begins
with `# needs: ...` is not run here. Only ports and passwords of this machine are put in the place of the README's.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.mongod import MongoPlace

pytestmark = [pytest.mark.slow, pytest.mark.row(157)]

ROOT = Path(__file__).parents[2]
NEEDS = ("docker", "vercel", "gpu", "network")
UNRUN_MAX = 9
# What serves until Ctrl-C, and what it says when it is ready.
SERVERS = {"livery up": "livery run start"}
# CI runs these itself, and runs the README's test inside one of them.
OF_CI = tuple(f"make {target}" for target in re.findall(r"\w+", (ROOT / ".ci/run").read_text().partition("make ")[2]))
WAIT_S = 240
SECTION_S = 240


@dataclass(frozen=True)
class Block:
    section: str
    line: int
    needs: str | None
    commands: tuple[str, ...]


def blocks(text: str) -> Iterator[Block]:
    """Yield the console blocks; a command is a line after `$ `, and the lines that a backslash adds to it."""
    section, lines = "", text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if line != "```console":
            continue
        first = number
        end = lines.index("```", first)
        needs = re.fullmatch(r"# needs: (\w+)", lines[first])
        commands = re.findall(r"(?m)^\$ ((?:.*\\\n)*.*)$", "\n".join(lines[first:end]))
        yield Block(section, first, needs[1] if needs else None, tuple(commands))
        number = end + 1


BLOCKS = tuple(blocks((ROOT / "README.md").read_text(encoding="utf-8")))


def test_few_blocks_are_left_out_and_each_says_what_it_needs() -> None:
    left_out = [block.needs for block in BLOCKS if block.needs is not None]
    assert set(left_out) <= set(NEEDS)
    assert len(left_out) <= UNRUN_MAX
    assert all(block.commands for block in BLOCKS)


def test_every_console_block_runs(tmp_path: Path, mongo_place: MongoPlace) -> None:
    put_in = {"localhost:27017": re.sub(r"^mongodb://([^/]+)/.*", r"\1", mongo_place.url)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LIVERY_", "PYTEST_"))}
    environment |= {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "COLUMNS": "120",
    }
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for section in dict.fromkeys(block.section for block in BLOCKS):
            commands = [
                command
                for block in BLOCKS
                if block.section == section and block.needs is None
                for command in block.commands
                if command.partition("#")[0].strip() not in OF_CI
            ]
            for command in [command for command in commands if command in SERVERS]:
                log = tmp_path / f"{len(servers)}.log"
                servers.append(serve(command, environment, log))
                if plane := re.search(r"control plane\W+http://(\S+)", log.read_text()):
                    put_in["localhost:3000"] = plane[1]
                    environment["LIVERY_URL"] = f"http://{plane[1]}"
            run_section(section, [command for command in commands if command not in SERVERS], environment, put_in)
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(WAIT_S)


def run_section(section: str, commands: list[str], environment: dict[str, str], put_in: dict[str, str]) -> None:
    script = "\n".join(["set -eo pipefail", *(f"echo {shlex.quote('$ ' + line)}\n{line}" for line in commands)])
    for theirs, ours in put_in.items():
        script = script.replace(theirs, ours)
    with tempfile.TemporaryFile("w+") as said:
        # Into a file: a pipe would be waited for as long as anything that the section started holds it.
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(SECTION_S)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            code = shell.wait()
        said.seek(0)
        told = said.read()
    assert code == 0, f"README section {section!r}:\n{told[-4_000:]}"


def serve(command: str, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("w") as stream:
        server = subprocess.Popen(
            shlex.split(command),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + WAIT_S
    while SERVERS[command] not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.1)
    return server
