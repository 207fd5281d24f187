"""
What a job costs beside its training: the same steps by the job's program, checkpoints included, and by a bare loop.

Pairs in turn, so that whatever else the machine does falls on both; the last line is JSON. What the job's evaluations
take, which the bare loop has none of, is not in the ratio and told beside it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.records import add_arguments, record
from gpu_worker.config import program_environment
from gpu_worker.engine.tiny import NAME, TEXT
from wire import decimal_json

RATIO_MIN = 0.95
BATCH, LENGTH, CHECKPOINT_STEPS = 4, 128, 50
PARAMS = {"batchSize": BATCH, "sequenceLength": LENGTH}
_NICE = 5  # as the program itself is


def main(words: list[str]) -> int:
    reader = argparse.ArgumentParser(prog="bench.training", description=__doc__)
    add_arguments(reader)
    reader.add_argument("--rounds", type=int, default=5)
    reader.add_argument("--steps", type=int, default=400)
    reader.add_argument("--threads", type=int, default=1)
    reader.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    asked = reader.parse_args(words)
    if asked.bare is not None:
        print(json.dumps(bare(asked.bare, asked.steps, asked.threads, asked.seed or 0)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), asked.rounds, asked.steps, asked.threads, asked.seed or 0)
    show(figures)
    if asked.record:
        record("training", figures)
    print(json.dumps(figures))
    return 0 if figures["ratio"] >= RATIO_MIN else 1


def measure(folder: Path, rounds: int, steps: int, threads: int, seed: int) -> dict[str, Any]:
    """Return the figures of `rounds` pairs."""
    _run([sys.executable, "-m", "gpu_worker.engine.tiny", str(folder)], threads)
    bare_s, program_s, stalls_s, evaluated = [], [], [], []
    for number in range(rounds):
        for kind in ("bare", "program") if number % 2 == 0 else ("program", "bare"):
            if kind == "bare":
                command = [sys.executable, "-m", "bench.training", "--bare", str(folder), "--steps", str(steps)]
                said = _run([*command, "--threads", str(threads), "--seed", str(seed)], threads)
                bare_s.append(steps / float(json.loads(said)["seconds"]))
            else:
                report = _by_program(folder, f"job-{number}", steps, threads, seed)
                program_s.append(steps / float(report["trainedSeconds"]))
                stalls_s.append(float(report["stalledSeconds"]))
                evaluated.append(float(report["evaluatedSeconds"]) / float(report["trainedSeconds"]))
    saved = max((steps - 1) // CHECKPOINT_STEPS, 1)
    pairs = [program / alone for program, alone in zip(program_s, bare_s, strict=True)]
    return {
        "seed": seed,
        "steps": steps,
        "threads": threads,
        "rounds": rounds,
        "bare_steps_per_s": round(statistics.median(bare_s), 2),
        "program_steps_per_s": round(statistics.median(program_s), 2),
        "ratio": round(statistics.median(pairs), 4),
        "ratio_min": round(min(pairs), 4),
        "evaluations_beside": round(statistics.median(evaluated), 4),
        "stall_ms_per_checkpoint": round(1000 * statistics.median(stalls_s) / saved, 2),
        "checkpoint_steps": CHECKPOINT_STEPS,
    }


def bare(folder: Path, steps: int, threads: int, seed: int) -> dict[str, float]:
    """Train as a script of twenty lines would, and return the seconds of its steps."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder / NAME, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / NAME)
    texts = [json.loads(line)["text"] for line in (folder / TEXT).read_text(encoding="utf-8").splitlines()]
    ids = [token for found in tokenizer(texts)["input_ids"] for token in (*found, tokenizer.eos_token_id)]
    data = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    order = torch.randperm(len(data))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    began = time.perf_counter()
    for step in range(steps):
        batch = data[order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(data)]]
        logits = model(input_ids=batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
    return {"seconds": time.perf_counter() - began}


def _by_program(folder: Path, name: str, steps: int, threads: int, seed: int) -> dict[str, Any]:
    """Return the report of a job that trains as many steps."""
    path = folder / name
    (path / "input").mkdir(parents=True)
    (path / "input" / TEXT).write_bytes((folder / TEXT).read_bytes())
    spec = {
        "jobId": name,
        "kind": "fine_tune",
        "params": {**PARAMS, "steps": steps, "seed": seed},
        "device": "cpu",
        "threads": threads,
        "checkpointSteps": CHECKPOINT_STEPS,
        "modelFolder": str(folder / NAME),
        "input": {"name": TEXT, "sha256": "0" * 64, "form": "text", "records": 1, "bytes": 1},
        "fileBytesMax": 2**32,
    }
    (path / "spec.json").write_bytes(decimal_json.dumps(spec))
    _run([sys.executable, "-m", "gpu_worker.engine.job", str(path)], threads)
    report: dict[str, Any] = json.loads((path / "result" / "report.json").read_text())
    return report


def _run(command: list[str], threads: int) -> str:
    """Return what a program says. Its stdin stays open: its end would ask a job to stop."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=program_environment(threads)
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return said


def show(figures: dict[str, Any]) -> None:
    table = Table("figure", "value", title="a job's program beside a bare loop")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
