"""
A very small Llama and a text to train it on, both made here: `python -m gpu_worker.engine.tiny INTO`.

INTO/tiny-llm is a model folder like any other; INTO/house-text.jsonl has the sources of the house, a record a piece.
Made again they are the same to the byte.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "tiny-llm"
TEXT = "house-text.jsonl"
ROOMS = ("agent", "cashier", "chain", "gpu_worker", "inbound", "outbound", "storage", "storefront", "wire")
VOCABULARY = 258
PIECE_CHARS = 1_500
END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def pieces() -> Iterator[str]:
    """Yield the sources of the installed rooms in pieces of whole lines, room by room, file by file."""
    for room in ROOMS:
        folder = Path(str(importlib.import_module(room).__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            piece = ""
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if piece and len(piece) + len(line) > PIECE_CHARS:
                    yield piece
                    piece = ""
                piece += line
            if piece.strip():
                yield piece


def make_text(path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": piece}, ensure_ascii=False) + "\n" for piece in pieces())


def make_model(folder: Path) -> None:
    """Write the model with its tokenizer, untrained, into `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_bpe(), eos_token=END, pad_token=END)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _bpe() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # GPT-2's cut of a text into words, which llama.cpp knows too.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces(), trainer)
    return tokenizer


def main(words: list[str]) -> int:
    if len(words) != 1:
        print("usage: python -m gpu_worker.engine.tiny INTO", file=sys.stderr)
        return 2
    into = Path(words[0])
    (into / NAME).mkdir(parents=True, exist_ok=True)
    make_text(into / TEXT)
    make_model(into / NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
