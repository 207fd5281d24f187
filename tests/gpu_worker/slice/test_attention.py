"""Which rows of a step are read together."""

import torch

from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.attention import plan


def test_sessions_of_a_like_length_are_one_read_and_a_long_one_pads_no_short_one() -> None:
    def read(*positions: int) -> tuple[list[int], list[int]]:
        runs = [
            Run(session=f"session {number}", epoch=0, position=position, count=1)
            for number, position in enumerate(positions)
        ]
        made = plan(runs, range(len(runs)), torch.device("cpu"))
        return sorted(each.high for each in made.together), sorted(span.position for span in made.spans)

    assert read(*[512] * 16) == ([513], [])
    assert read(*range(1_000, 1_016)) == ([1_016], [])
    assert read(1, 100, 255) == ([256], [])
    assert read(*[100] * 15, 16_000) == ([101], [16_000])
    assert read(100, 5_000, 110, 16_000, 9_000) == ([111, 16_001], [5_000])
    assert read(7) == ([], [7])
