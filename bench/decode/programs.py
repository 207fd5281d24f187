"""
The peers that run in the same interpreter: `python -m bench.decode.programs hf|hf-pipeline FOLDER`.

A line of JSON comes in for each turn, `{"prompts": [[...]], "count": n}`, and one goes out: `{"tokens", "seconds"}`,
from the first token, which is not counted, to the last. Before the first turn it tells its `pids`.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from bench.decode import config


def decode(model: Any, prompts: list[list[int]], count: int) -> tuple[int, float]:
    """Return the tokens and seconds of a greedy decode of prompts of equal length in one batch."""
    ids, cache = torch.tensor(prompts), None
    began_s = 0.0
    for number in range(count):
        told = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = told.past_key_values, told.logits[:, -1].argmax(-1, keepdim=True)
        if number == 0:
            began_s = time.perf_counter()
    return (count - 1) * len(prompts), time.perf_counter() - began_s


def load(folder: str, **how: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(config.threads())
    torch.set_grad_enabled(False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **how).eval()


def hf(folder: str) -> None:
    """transformers, the whole model in this process."""
    model = load(folder)
    print(json.dumps({"pids": [os.getpid()]}), flush=True)
    for asked in _asked():
        tokens, seconds = decode(model, asked["prompts"], asked["count"])
        print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)


def hf_pipeline(folder: str) -> None:
    """transformers' own pipeline parallelism over two processes that talk through gloo, as torchrun starts them."""
    import torch.distributed as dist
    from transformers.distributed import DistributedConfig

    rank, size = config.place()
    model = load(folder, distributed_config=DistributedConfig(pp_size=size))
    pids: list[Any] = [None] * size
    dist.all_gather_object(pids, os.getpid())
    if rank == 0:
        print(json.dumps({"pids": pids}), flush=True)
    lines = _asked() if rank == 0 else None
    while True:
        box = [next(lines, None) if lines is not None else None]
        dist.broadcast_object_list(box, src=0)
        if box[0] is None:
            break
        tokens, seconds = decode(model, box[0]["prompts"], box[0]["count"])
        if rank == 0:
            print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)
    dist.destroy_process_group()


def _asked() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


if __name__ == "__main__":
    {"hf": hf, "hf-pipeline": hf_pipeline}[sys.argv[1]](sys.argv[2])
