"""
A held-out loss computed again, from the downloaded files and the dataset alone: numpy, no torch, nothing of the house.

    python -m tests.gpu_worker.second_opinion MODEL_FOLDER DATASET.jsonl

The dataset is JSON lines of `{"text"}`. Held out is the share of the different records whose SHA-256 (of compact JSON)
is lowest; their texts are joined, each followed by the end token, and cut every `length` tokens.
"""

import hashlib
import json
import re
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]


def held_out_loss(model: Path, dataset: Path) -> float:
    """Return the loss on the first 32 sequences of what a job with the default parameters holds out."""
    return mean_loss(model, held_out_texts(dataset, "0.1"), length=128, sequences_max=32)


def mean_loss(model: Path, texts: list[str], *, length: int, sequences_max: int) -> float:
    """Return the mean over all tokens but the first of each sequence."""
    config, tensors = json.loads((model / "config.json").read_text()), read_safetensors(model / "model.safetensors")
    encode, _ = tokenizer(json.loads((model / "tokenizer.json").read_text()))
    tokens: list[int] = []
    for text in texts:
        tokens += [*encode(text), config["eos_token_id"]]
    total, count = 0.0, 0
    for at in range(0, min(len(tokens) - 1, length * sequences_max), length):
        sequence = np.array(tokens[at : at + length])
        found = log_probabilities(sequence, tensors, config)[:-1]
        total -= float(found[np.arange(len(sequence) - 1), sequence[1:]].sum())
        count += len(sequence) - 1
    return total / count


def completion(model: Path, prompt: str, tokens_max: int) -> str:
    """Return what the model finds most likely after `prompt`, token by token."""
    config, tensors = json.loads((model / "config.json").read_text()), read_safetensors(model / "model.safetensors")
    encode, decode = tokenizer(json.loads((model / "tokenizer.json").read_text()))
    asked = encode(prompt)
    said: list[int] = []
    while len(said) < tokens_max:
        best = int(log_probabilities(np.array(asked + said), tensors, config)[-1].argmax())
        if best == config["eos_token_id"]:
            break
        said.append(best)
    return decode(said)


def held_out_texts(dataset: Path, share: str) -> list[str]:
    texts = [json.loads(line)["text"] for line in dataset.read_text(encoding="utf-8").splitlines()]

    lowest = sorted({digest({"text": text}) for text in texts})
    kept = set(lowest[: max(1, int(len(lowest) * Fraction(share)))])
    return [text for text in texts if digest({"text": text}) in kept]


def digest(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).digest()


def answers_loss(model: Path, chats: list[tuple[str, str]]) -> float:
    """Return the mean loss over the tokens of the answers, their ends too, each after its question."""
    config, tensors = json.loads((model / "config.json").read_text()), read_safetensors(model / "model.safetensors")
    encode, _ = tokenizer(json.loads((model / "tokenizer.json").read_text()))
    end = config["eos_token_id"]
    losses: list[float] = []
    for question, answer in chats:
        asked = [*encode(f"<user> {question}"), end, *encode("<assistant> ")]
        tokens = np.array([*encode(f"<user> {question}"), end, *encode(f"<assistant> {answer}"), end])
        found = log_probabilities(tokens, tensors, config)
        losses += [-found[at - 1, tokens[at]] for at in range(len(asked), len(tokens))]
    return float(np.mean(losses))


def read_safetensors(path: Path) -> Tensors:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            assert about["dtype"] == "F32"
            start, end = (8 + size + at for at in about["data_offsets"])
            found[name] = np.frombuffer(data[start:end], "<f4").reshape(about["shape"]).astype(np.float64)
    return found


def write_safetensors(tensors: Tensors, path: Path) -> None:
    header, data = {}, b""
    for name, tensor in tensors.items():
        more = tensor.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(more)]}
        data += more
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# GPT-2's, as Python's own expressions have it: letters, numbers, other signs, each with the space before them.
WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def tokenizer(document: dict[str, Any]) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    """Return a byte-level BPE by its tokenizer.json, both ways: GPT-2's words, then merges by rank."""
    vocabulary = document["model"]["vocab"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(document["model"]["merges"])}
    assert document["pre_tokenizer"]["use_regex"]
    signs = byte_signs()

    def encode(text: str) -> list[int]:
        ids = []
        for word in WORDS.findall(text):
            parts = [signs[byte] for byte in word.encode()]
            while len(parts) > 1:
                pairs = [*pairwise(parts)]
                best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
                if best not in ranks:
                    break
                at, merged = 0, []
                while at < len(parts):
                    is_pair = tuple(parts[at : at + 2]) == best
                    merged.append("".join(best) if is_pair else parts[at])
                    at += 2 if is_pair else 1
                parts = merged
            ids += [vocabulary[part] for part in parts]
        return ids

    def decode(ids: list[int]) -> str:
        names, numbers = {at: name for name, at in vocabulary.items()}, {sign: byte for byte, sign in signs.items()}
        return bytes(numbers[sign] for one in ids for sign in names[one]).decode("utf-8", "replace")

    return encode, decode


def byte_signs() -> dict[int, str]:
    """Return the printable sign of each byte, as byte-level tokenizers have them since GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}


def log_probabilities(tokens: np.ndarray, tensors: Tensors, config: dict[str, Any]) -> np.ndarray:
    """Return the log of what a Llama holds each next token for, position by position. Source: Llama (2302.13971)."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size, eps, length = config["head_dim"], config["rms_norm_eps"], len(tokens)
    theta = config["rope_parameters"]["rope_theta"]
    angles = np.outer(np.arange(length), theta ** (-np.arange(0, size, 2) / size))
    cos, sin = (np.concatenate([turn(angles)] * 2, axis=-1) for turn in (np.cos, np.sin))
    future = np.triu(np.full((length, length), -np.inf), 1)

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * tensors[name]

    def turned(x: np.ndarray) -> np.ndarray:
        half = size // 2
        return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin

    def split(x: np.ndarray, count: int) -> np.ndarray:
        return x.reshape(length, count, size).swapaxes(0, 1)

    x = tensors["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        y = normed(x, f"{at}.input_layernorm.weight")
        q, k, v = (y @ tensors[f"{at}.self_attn.{name}_proj.weight"].T for name in "qkv")
        q, k, v = turned(split(q, heads)), turned(split(k, groups)), split(v, groups)
        k, v = (np.repeat(each, heads // groups, axis=0) for each in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(size) + future
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + (weights @ v).swapaxes(0, 1).reshape(length, -1) @ tensors[f"{at}.self_attn.o_proj.weight"].T
        y = normed(x, f"{at}.post_attention_layernorm.weight")
        gate, up = (y @ tensors[f"{at}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ tensors[f"{at}.mlp.down_proj.weight"].T
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    logits = normed(x, "model.norm.weight") @ head.T
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


if __name__ == "__main__":
    print(json.dumps({"loss": held_out_loss(Path(sys.argv[1]), Path(sys.argv[2]))}))
