"""
Write a Llama that `models.make` has made as a GGUF file: `python gguf_file.py FOLDER FILE f32|q8_0`.

It is run by the interpreter that has `gguf` and numpy, and nothing of ours.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def tensors_of(folder: Path) -> dict[str, Any]:
    """Return the float32 arrays of the safetensors files, by name: a header of JSON behind its length, then numbers."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(data[:8].tobytes(), "little")
        for name, about in json.loads(data[8 : 8 + size].tobytes()).items():
            if name == "__metadata__":
                continue
            if about["dtype"] != "F32":
                raise ValueError(f"{name} is {about['dtype']}")
            begin, end = (8 + size + at for at in about["data_offsets"])
            found[name] = data[begin:end].view(np.float32).reshape(about["shape"])
    return found


def turned(weight: Any, heads: int) -> Any:
    """Return the rows of a query or key weight in GGML's order: halves of a head interleaved."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write(folder: Path, file: Path, kind: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base((config.get("rope_parameters") or config).get("rope_theta", 10_000.0))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(FILE_TYPES[kind])
    _write_words(writer, folder, config["vocab_size"])
    for name, array in tensors_of(folder).items():
        short = name.removesuffix(".weight")
        if short in ENDS:
            to = ENDS[short]
        else:
            _, _, layer, part = short.split(".", 3)
            to = f"blk.{layer}.{NAMES[part]}"
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                array = turned(array, heads if "q_proj" in part else kv_heads)
        array = np.ascontiguousarray(array)
        if array.ndim == 1 or kind == "f32":
            writer.add_tensor(f"{to}.weight", array)
        else:
            q8_0 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{to}.weight", gguf.quants.quantize(array, q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_words(writer: Any, folder: Path, size: int) -> None:
    words: list[str] = [""] * size
    for word, number in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"].items():
        words[number] = word
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([kinds.CONTROL if number < 2 else kinds.NORMAL for number in range(size)])
    # A vocabulary of its kind has merges; of these bytes none is ever made here: prompts are token ids.
    writer.add_token_merges([f"{words[2]} {words[3]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
