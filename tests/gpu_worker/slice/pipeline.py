"""Slices of one model in one process, one behind the other, and sessions that come and go by a seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.hf import HfStage
from gpu_worker.engine.slice.loading import load_slice, look_at

CACHE_BYTES = 2**24
CHUNK = 8


def stage_of(folder: Path, start: int, end: int, *, cache_bytes_max: int = CACHE_BYTES, **named: str) -> HfStage:
    seen = look_at(folder)
    return HfStage(load_slice(seen, Layers(start, end, seen.layers), **named), cache_bytes_max=cache_bytes_max)


@dataclass
class Told:
    """A session: `tokens` has its prompt first, `logits` is a row for each token behind it."""

    tokens: list[int]
    prompt: int
    wanted: int
    logits: list[torch.Tensor] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.logits) == self.wanted


class Pipeline:
    """Greedy decoding through `stages`."""

    def __init__(self, stages: Sequence[HfStage]) -> None:
        self.stages = stages
        self.told: dict[str, Told] = {}

    def open(self, session: str, prompt: Sequence[int], wanted: int) -> None:
        self.told[session] = Told(list(prompt), len(prompt), wanted)
        for stage in self.stages:
            stage.open(session, len(prompt) + wanted)

    def close(self, session: str) -> None:
        for stage in self.stages:
            stage.close(session)

    def step(self, sessions: Sequence[str], *, chunk: int = CHUNK) -> None:
        """Give each of `sessions` its next chunk of prompt or its next token, all in one step."""
        runs, ids = [], []
        for session in sessions:
            told, at = self.told[session], self.stages[0].length(session)
            assert at is not None
            rows = told.tokens[at : at + chunk]
            runs.append(
                Run(session=session, epoch=0, position=at, count=len(rows), samples=at + len(rows) == len(told.tokens))
            )
            ids += rows
        rows = torch.tensor(ids)
        for stage in self.stages:
            rows = stage.forward(rows, runs)
        for logits, run in zip(rows, [run for run in runs if run.samples], strict=True):
            self.told[run.session].logits.append(logits)
            self.told[run.session].tokens.append(int(logits.argmax()))


def run_sessions(
    stages: Sequence[HfStage], *, seed: int, sessions: int = 3, vocabulary: int = 512
) -> Mapping[str, Told]:
    """Let sessions of mixed lengths join and leave at steps that `seed` draws; return what each was told."""
    dice = random.Random(seed)
    pipeline, waiting = Pipeline(stages), [f"session {number}" for number in range(sessions)]
    open_ones: list[str] = []
    while waiting or open_ones:
        while waiting and (not open_ones or dice.random() < 0.6):
            session = waiting.pop()
            prompt = [dice.randrange(2, vocabulary) for _ in range(dice.choice((3, 4, 7, 11, 14)))]
            pipeline.open(session, prompt, dice.randint(2, 4))
            open_ones.append(session)
        dice.shuffle(open_ones)
        # Now and then somebody has no row in a step.
        pipeline.step([each for each in open_ones if dice.random() < 0.9] or open_ones)
        for session in [each for each in open_ones if pipeline.told[each].is_done]:
            pipeline.close(session)
            open_ones.remove(session)
    assert all(stage.cache.sessions == 0 for stage in stages)
    return pipeline.told
