"""The models of the benchmark: Llamas of random weights with a tokenizer, made here, the same at each making."""

from pathlib import Path
from typing import Any

# name -> what its config says; the parameters in millions are in the names. The tiny one tries the benchmark itself.
SHAPES: dict[str, dict[str, int]] = {
    "llama-tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    "llama-88m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "llama-629m": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 12},
}
IN_BF16 = "-bf16"
KV_HEADS = 4
VOCABULARY = 8192
BYTES = 256
CONTEXT = 4096
SCALE = 0.03


def layers_of(name: str) -> int:
    return SHAPES[name.removesuffix(IN_BF16)]["num_hidden_layers"]


def make(name: str, into: Path) -> Path:
    """Return the folder of the model `name` under `into`, made where it is not there yet; `-bf16`: in bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = into / name
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        **SHAPES[name.removesuffix(IN_BF16)],
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, SCALE)
    # Neither the end nor a byte that is no character is ever chosen: each token is text, each answer as long as asked.
    model.lm_head.weight.data[: 2 + BYTES] = 0.0
    if name.endswith(IN_BF16):
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="200MB")
    _tokenizer().save_pretrained(folder)
    (folder / "done").touch()
    return folder


def _tokenizer() -> Any:
    """Return a tokenizer with a token for each byte and no others but filling: any text is tokens, any token text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"<{number}>" for number in range(len(words), VOCABULARY)]
    inner = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")  # noqa: S106
