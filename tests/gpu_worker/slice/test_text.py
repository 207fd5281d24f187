"""A model's tokenizer: chats, bounds, and text that comes piece by piece as it would at once."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.engine.slice.text import FolderText, bounded, open_text, tokenizer_in
from tests.fixtures.tiny import Tiny


@pytest.fixture(scope="module")
def byte_level(tiny: Tiny) -> FolderText:
    return open_text(tiny.model)


@pytest.fixture(scope="module")
def pieces_of_words() -> FolderText:
    """A tokenizer as Llama 2's is: words with a mark for the space before them, bytes for what it does not know."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁a",
        "b",
        "▁the",
        "s",
        "a",
        "e",
        "t",
    ]
    vocabulary = {word: at for at, word in enumerate(words)}
    merges = [("▁", "a"), ("▁", "the")]
    model = models.BPE(vocab={**vocabulary, "the": len(words)}, merges=merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    return FolderText(fast, (2,))


def streamed(text: FolderText, tokens: tuple[int, ...], after: tuple[int, ...] = ()) -> list[str]:
    stream = text.stream(after)
    return [*(stream.push(token) for token in tokens), stream.end()]


TEXTS = st.text(
    st.one_of(st.sampled_from(" \nabthes.é€𝄞👍🏽\u0627"), st.characters(exclude_categories=["Cs"])), max_size=60
)


@pytest.mark.row(50)
@given(TEXTS)
def test_a_text_in_pieces_is_the_text(byte_level: FolderText, text: str):
    pieces = streamed(byte_level, byte_level.encode(text))
    assert "".join(pieces) == text


@given(TEXTS)
def test_no_piece_has_a_part_of_a_character(byte_level: FolderText, text: str):
    stream = byte_level.stream()
    so_far = ""
    for token in byte_level.encode(text):
        so_far += stream.push(token)
        assert text.startswith(so_far)
    # No more is held than one character, or those that look like a broken one.
    assert text == so_far + stream.end()


@given(st.text(" abthesé€👍", max_size=30))
def test_words_keep_their_spaces(pieces_of_words: FolderText, text: str):
    tokens = pieces_of_words.encode(text)
    assert "".join(streamed(pieces_of_words, tokens)) == pieces_of_words.tokenizer.decode(tokens)


def test_an_answer_keeps_the_space_to_what_is_before_it(pieces_of_words: FolderText):
    prompt, both = pieces_of_words.encode("the"), pieces_of_words.encode("the a the")
    assert both[: len(prompt)] == prompt
    assert "".join(streamed(pieces_of_words, both[len(prompt) :], prompt)) == " a the"
    assert "".join(streamed(pieces_of_words, both[len(prompt) :])) == "a the"


@given(st.lists(st.integers(0, 257), max_size=80))
def test_any_tokens_give_some_text_and_little_is_held(byte_level: FolderText, tokens: list[int]):
    stream, held = byte_level.stream(), 0
    so_far = ""
    for at in range(len(tokens)):
        so_far += stream.push(tokens[at])
        whole = byte_level.tokenizer.decode(tokens[: at + 1], skip_special_tokens=True)
        assert whole.startswith(so_far)
        held = max(held, len(whole) - len(so_far))
    assert held <= 3
    assert so_far + stream.end() == byte_level.tokenizer.decode(tokens, skip_special_tokens=True)


def test_bytes_that_are_no_character_do_not_pile_up(pieces_of_words: FolderText):
    broken = pieces_of_words.tokenizer.convert_tokens_to_ids("<0xFF>")
    pieces = streamed(pieces_of_words, (broken,) * 200)
    assert "".join(pieces) == "\ufffd" * 200
    assert len(pieces[-1]) <= 3


def test_a_character_of_four_tokens_comes_with_its_last(byte_level: FolderText):
    assert streamed(byte_level, byte_level.encode("👍"))[-2:] == ["👍", ""]


def test_an_answer_that_ends_within_a_character_shows_that(byte_level: FolderText):
    assert streamed(byte_level, byte_level.encode("a👍")[:-1])[-1] == "\ufffd"


@given(TEXTS)
def test_tokens_have_bytes(byte_level: FolderText, text: str):
    assert b"".join(byte_level.token_bytes(token) for token in byte_level.encode(text)) == text.encode()


@given(st.text(" abthesé€👍", min_size=1, max_size=30))
def test_tokens_of_words_have_bytes(pieces_of_words: FolderText, text: str):
    found = b"".join(pieces_of_words.token_bytes(token) for token in pieces_of_words.encode(text))
    assert found == b" " + text.encode()


def test_special_tokens_are_no_text(byte_level: FolderText):
    (end,) = byte_level.eos
    assert streamed(byte_level, (*byte_level.encode("a"), end, *byte_level.encode("b"))) == ["a", "", "b", ""]
    assert byte_level.token_bytes(end) == b"<|end|>"
    assert byte_level.token_bytes(10_000) == b""


def test_half_of_a_pair_of_surrogates_is_replaced(byte_level: FolderText):
    assert byte_level.encode("a\ud800b") == byte_level.encode("a?b")


def test_no_token_has_more_characters_than_it_says(byte_level: FolderText, pieces_of_words: FolderText):
    for text in (byte_level, pieces_of_words):
        tokens = sorted(text.tokenizer.get_vocab().values())
        longest = max(len(text.token_bytes(token).decode("utf-8", "replace")) for token in tokens)
        assert 1 < longest <= text.token_chars_max < 64


def test_a_text_without_end_is_refused(byte_level: FolderText):
    short = FolderText(byte_level.tokenizer, byte_level.eos, chars_max=10)
    with pytest.raises(InferenceError, match="more than 10"):
        short.encode("a" * 11)
    with pytest.raises(BadInput, match="more than 10"):
        short.chat([{"role": "user", "content": "a" * 11}])


def test_a_chat_is_what_the_template_makes_of_it(byte_level: FolderText):
    tokens = byte_level.chat([{"role": "user", "content": "hello"}])
    assert tokens == byte_level.encode("<user> hello<|end|><assistant> ")


def with_template(text: FolderText, template: str | None, **limits: Any) -> FolderText:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=text.tokenizer.backend_tokenizer, eos_token="<|end|>")
    tokenizer.chat_template = template
    return FolderText(tokenizer, text.eos, **limits)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('system first') }}", "system first"),
        ("{{ messages.__class__.__mro__ }}", "refuses"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
        ("{{ 'a' * 20000000 }}", "more than"),
        ("{% if %}", "refuses"),
    ],
    ids=["none", "raises", "escapes", "endless", "endless text", "broken"],
)
def test_a_template_that_refuses_or_never_ends_is_the_chats_fault(
    byte_level: FolderText, template: str | None, said: str
):
    text, found = with_template(byte_level, template, template_s=0.2), []

    def ask() -> None:
        with pytest.raises(BadInput, match=said) as caught:
            text.chat([{"role": "user", "content": "hello"}])
        found.append(caught.value)

    ask()
    # Where a loop is, it is done by another thread, to which signals do not come.
    other = threading.Thread(target=ask)
    other.start()
    other.join()
    assert len(found) == 2


def test_what_is_told_to_a_template_reaches_it(byte_level: FolderText):
    text = with_template(byte_level, "{{ tools | length if tools else 0 }}{{ enable_thinking }}")
    tool: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert text.chat([{"role": "user", "content": ""}], tools=[tool], enable_thinking=False) == byte_level.encode(
        "1False"
    )


def test_what_is_in_time_is_not_touched():
    with bounded(1.0):
        assert sum(range(1000)) == 499_500


def test_a_folders_ends_are_the_tokenizers_and_the_models(tiny: Tiny, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert tokenizer_in(folder)[1][:3] == (0, 7, 8)


def test_code_of_its_own_is_not_run(tiny: Tiny, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoTokenizer": "evil.Evil"}}))
    with pytest.raises(BadInput, match="code of its own"):
        open_text(folder)


def test_a_folder_without_a_tokenizer_is_named(tiny: Tiny, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.model, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(OwnersFault, match="tokenizer cannot be loaded"):
        open_text(folder)


def test_special_tokens_that_stand_for_a_call_are_text_where_they_are_asked_for(tiny: Tiny):
    tokenizer, eos = tokenizer_in(tiny.model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    text = FolderText(tokenizer, eos)
    said = ("Grüße 👍[TOOL_CALLS]", ' [{"name": "clock"}]')
    tokens = text.encode("".join(said))
    for shows, expected in ((("[TOOL_CALLS]", "<tool_call>"), "".join(said)), ((), "Grüße 👍" + said[1])):
        stream = text.stream((), shows)
        assert "".join(stream.push(token) for token in tokens) + stream.end() == expected


def test_the_template_tells_its_own_text(byte_level: FolderText, pieces_of_words: FolderText):
    assert "message['role']" in byte_level.template
    assert pieces_of_words.template == ""
    tokenizer = byte_level.tokenizer
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = {"default": "a", "tool_use": "<tool_call>"}
        assert "<tool_call>" in byte_level.template
    finally:
        tokenizer.chat_template = before
