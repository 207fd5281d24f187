"""
Turns a Llama with a byte-level BPE, a folder with safetensors, into one GGUF file, and adapters of it into another.

    python -m gpu_worker.engine.gguf.convert FOLDER OUT.gguf [f32|f16|q8_0]
    python -m gpu_worker.engine.gguf.convert ADAPTER OUT.gguf --for MODEL.gguf

What would come out wrong is refused by name: another architecture, scaled positions, another cut of the text.

Source: llama.cpp's convert_hf_to_gguf.py and convert_lora_to_gguf.py.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_worker.core.errors import OwnersFault

ARCHITECTURE = "llama"
TYPES = ("f32", "f16", "q8_0")
# Rows of a matrix are cut into blocks of so many numbers.
_BLOCK = 32
_GPT2 = "gpt-2"
# How llama.cpp calls what cuts a text before its bytes are joined, by the regular expression of the tokenizer.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {_LLAMA3: "llama-bpe"}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
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


def model_to_gguf(folder: Path, out: Path, kind: str) -> None:
    """
    Write the model of `folder` to `out`, its matrices as `kind` (f32, f16, q8_0), its vectors as f32.

    Raises:
        OwnersFault: it is none that comes out right; the sentence says why.
    """
    from gguf import GGUFWriter

    config = _read(folder / "config.json")
    tokenizer = _read(folder / "tokenizer.json")
    _check(config)
    writer = GGUFWriter(str(out), ARCHITECTURE)
    _write_shape(writer, folder.name, config, kind)
    _write_tokens(writer, config, tokenizer, _template(folder))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in _tensors(folder, "*.safetensors"):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue  # it is the embedding, which is read in its place
        to = _renamed(name)
        _put(writer, to, _interleaved(tensor, heads.get(to.split(".")[-2], 0)), kind)
    _close(writer)


def adapter_to_gguf(folder: Path, out: Path, *, heads: int, kv_heads: int) -> None:
    """
    Write the adapter that peft saved in `folder` to `out`; `heads` and `kv_heads` are those of its model.

    Raises:
        OwnersFault: it has parts that llama.cpp does not add.
    """
    from gguf import GGUFWriter

    config = _read(folder / "adapter_config.json")
    odd = [each for each in ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern") if config.get(each)]
    if odd or config.get("bias", "none") != "none":
        raise OwnersFault(f"an adapter with {', '.join(odd) or 'biases'} is not served on a GGUF model")
    writer = GGUFWriter(str(out), ARCHITECTURE)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    counts = {"attn_q": heads, "attn_k": kv_heads}
    for name, tensor in _tensors(folder, "adapter_model.safetensors"):
        stem, _, part = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        if part not in ("A", "B"):
            raise OwnersFault(f"the adapter's {name[:100]} is no matrix of a LoRA")
        to = _renamed(f"{stem}.weight")
        rows = counts.get(to.split(".")[-2], 0) if part == "B" else 0
        _put(writer, f"{to}.lora_{part.lower()}", _interleaved(tensor, rows), "f32")
    _close(writer)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise OwnersFault(f"{path.parent.name} has no {path.name} that can be read") from None
    if not isinstance(document, dict):
        raise OwnersFault(f"the {path.name} of {path.parent.name} is no object")
    return document


def _check(config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    reasons = {
        f"a {config.get('model_type')}, only llama is converted": config.get("model_type") != "llama",
        "scaled positions": rope.get("rope_type", "default") != "default",
        "biases": bool(config.get("attention_bias") or config.get("mlp_bias")),
        f"the activation {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
    }
    for reason, applies in reasons.items():
        if applies:
            raise OwnersFault(f"the model has {reason}: convert it with llama.cpp's own converter")


def _write_shape(writer: Any, name: str, config: dict[str, Any], kind: str) -> None:
    from gguf import LlamaFileType

    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or width // heads
    rope = config.get("rope_parameters") or {}
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    types = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(types[kind])


def _write_tokens(writer: Any, config: dict[str, Any], tokenizer: dict[str, Any], template: str | None) -> None:
    from gguf import TokenType

    size = config["vocab_size"]
    tokens: list[str | None] = [None] * size
    types = [TokenType.NORMAL] * size
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index] = token
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    for index, known in enumerate(tokens):
        if known is None:
            tokens[index], types[index] = f"[PAD{index}]", TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([" ".join(each) if isinstance(each, list) else each for each in merges])
    for add, key in ((writer.add_bos_token_id, "bos_token_id"), (writer.add_eos_token_id, "eos_token_id")):
        if isinstance(config.get(key), int):
            add(config[key])
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def _cut(tokenizer: dict[str, Any]) -> str:
    """Return llama.cpp's name of how the tokenizer cuts a text. Raises OwnersFault: it knows none like it."""
    cuts = tokenizer.get("pre_tokenizer") or {}
    steps = cuts.get("pretokenizers", [cuts])
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    is_bytes = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if tokenizer["model"].get("type") == "BPE" and is_bytes and tokenizer.get("normalizer") is None:
        if kinds == ["ByteLevel"] and last.get("use_regex", True):
            return _GPT2
        if kinds == ["Split", "ByteLevel"] and (cut := _CUTS.get(steps[0]["pattern"].get("Regex", ""))) is not None:
            return cut
    raise OwnersFault("the tokenizer cuts texts in a way that llama.cpp is not told of here")


def _template(folder: Path) -> str | None:
    if (apart := folder / "chat_template.jinja").is_file():
        return apart.read_text(encoding="utf-8")
    told = _read(path).get("chat_template") if (path := folder / "tokenizer_config.json").is_file() else None
    return told if isinstance(told, str) else None


def _tensors(folder: Path, files: str) -> Iterator[tuple[str, Any]]:
    """Yield names and tensors as numpy's float32, file by file."""
    from safetensors import safe_open

    for path in sorted(folder.glob(files)):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                yield name, file.get_tensor(name).float().numpy()


def _renamed(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    if name.startswith("model.layers."):
        index, _, rest = name.removeprefix("model.layers.").partition(".")
        if index.isdigit() and (to := _INNER.get(rest.removesuffix(".weight"))) is not None:
            return f"blk.{index}.{to}.weight"
    raise OwnersFault(f"a tensor {name[:100]} is not known of a Llama")


def _interleaved(tensor: Any, heads: int) -> Any:
    """Return the rows of each head as ggml turns them, in pairs beside each other; `heads` 0: as they are."""
    if heads == 0:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _put(writer: Any, name: str, tensor: Any, kind: str) -> None:
    import numpy
    from gguf import GGMLQuantizationType, quants

    whole = numpy.ascontiguousarray(tensor, dtype=numpy.float32)
    if whole.ndim == 1 or kind == "f32":
        writer.add_tensor(name, whole)
    elif kind == "f16" or whole.shape[-1] % _BLOCK:
        writer.add_tensor(name, whole.astype(numpy.float16))
    else:
        blocks = quants.quantize(whole, GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q8_0)


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _heads(path: str) -> tuple[int, int]:
    """Return how many heads a GGUF model has, and of keys. Raises OwnersFault: it is none of a Llama."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    if fields["general.architecture"].contents() != ARCHITECTURE:
        raise OwnersFault("an adapter is converted for a Llama alone: use llama.cpp's own converter")
    return fields["llama.attention.head_count"].contents(), fields["llama.attention.head_count_kv"].contents()


def main(words: list[str]) -> int:
    try:
        match words:
            case [adapter, out, "--for", model]:
                heads, kv_heads = _heads(model)
                adapter_to_gguf(Path(adapter), Path(out), heads=heads, kv_heads=kv_heads)
            case [folder, out, *kind] if kind in ([], *([each] for each in TYPES)):
                model_to_gguf(Path(folder), Path(out), kind[0] if kind else "f16")
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except OwnersFault as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
