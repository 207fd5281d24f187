"""
The tokenizer of a model's folder: texts and chats to tokens, tokens to text piece by piece.

No code of the model's is run but its chat template, which is a program in a sandbox with a bound on its time and on
what it makes.
"""

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.engine.chats import ROW_CHARS_MAX, ROW_S
from gpu_worker.engine.model_files import config_in

TEXT_CHARS_MAX = 16 * ROW_CHARS_MAX
# The longest character of UTF-8 has four bytes, and a token at least one.
_UNFINISHED_MAX = 3
_BROKEN = "\ufffd"
# How many tokens are decoded again with each new one before the older half is let go, and the most: tokens that never
# make a character.
_WINDOW = 16
_WINDOW_MAX = 64


def tokenizer_in(folder: Path) -> tuple[Any, tuple[int, ...]]:
    """
    Return a folder's tokenizer, and the tokens that end a text.

    Raises:
        BadInput: it needs code of its own.
        OwnersFault: there is none that can be loaded.
    """
    config = config_in(folder)
    from transformers import AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        said = None
        if (folder / "generation_config.json").is_file():
            said = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except Exception as error:  # a library of many authors: it may raise anything for a file that is wrong
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise OwnersFault(f"the tokenizer cannot be loaded: {first[:300]}") from error
    # The tokenizer's own first: what ends a text of its vocabulary for certain.
    found: dict[int, None] = {}
    for each in (tokenizer.eos_token_id, said, config.get("eos_token_id")):
        for token in each if isinstance(each, list) else [each]:
            if isinstance(token, int) and token >= 0:
                found[token] = None
    return tokenizer, tuple(found)


def open_text(folder: Path) -> "FolderText":
    """Return the tokenizer of a model's folder. Raises as `tokenizer_in` does."""
    return FolderText(*tokenizer_in(folder))


class FolderText:
    """
    `inference.ports.Text` over a tokenizer of transformers; any thread may call it.

    No text has more than `chars_max` characters, and the chat template has `template_s`.
    """

    def __init__(
        self,
        tokenizer: Any,
        eos: tuple[int, ...],
        *,
        chars_max: int = TEXT_CHARS_MAX,
        template_s: float = ROW_S,
    ) -> None:
        self._tokenizer, self._eos = tokenizer, eos
        self._chars_max, self._template_s = chars_max, template_s
        # A piece that stands for bytes has a letter for each, so no fewer letters than characters.
        self._token_chars_max = max(map(len, tokenizer.get_vocab()), default=1)
        # A fast tokenizer is one object of another language: it may not be told of padding while it encodes.
        self._turn = threading.Lock()

    @property
    def eos(self) -> tuple[int, ...]:
        return self._eos

    @property
    def template(self) -> str:
        """The chat template's own text; of several that for tools, and those beside it."""
        told = self._tokenizer.chat_template or ""
        return "\n".join(told.values()) if isinstance(told, dict) else str(told)

    @property
    def token_chars_max(self) -> int:
        return self._token_chars_max

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    def encode(self, text: str) -> tuple[int, ...]:
        """Return a text's tokens, with those of the model's beginning. Raises InferenceError too_large."""
        return self._encoded(text, is_whole=True)

    def chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> tuple[int, ...]:
        """
        Return a chat's tokens with the beginning of the answer. `options` go to the template.

        Raises:
            BadInput: there is no template, it refuses the chat, takes too long, or makes too much of it.
        """
        if not self._tokenizer.chat_template:
            raise BadInput("invalid_field", "this model has no chat template")
        if sum(len(str(message.get("content") or "")) for message in messages) > self._chars_max:
            raise BadInput("invalid_field", f"a chat has more than {self._chars_max} characters")
        named = {"add_generation_prompt": True, **options, "tokenize": False}
        try:
            with bounded(self._template_s):
                text = self._tokenizer.apply_chat_template(list(messages), **named)
        except BadInput:
            raise
        except Exception as error:  # a template is a program: it may raise anything
            raise BadInput("invalid_field", f"the chat template refuses this chat: {str(error)[:200]}") from None
        if len(text) > self._chars_max:
            raise BadInput("invalid_field", f"the chat template makes more than {self._chars_max} characters of a chat")
        return self._encoded(text, is_whole=False)

    def stream(self, after: Sequence[int] = (), shows: Sequence[str] = ()) -> "FolderTextStream":
        """
        Return the decoder of an answer; `after` are the tokens before it, whose spaces it then keeps.

        Special tokens are nothing, but for those that `shows` names.
        """
        special = {str(token): number for number, token in self._tokenizer.added_tokens_decoder.items()}
        return FolderTextStream(self._tokenizer, after, {special[each]: each for each in shows if each in special})

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for in the middle of a text, maybe a part of a character."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if token in self._specials:
            return str(piece).encode()
        if self._is_byte_level:
            return b"".join(_byte_of(char) for char in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return str(piece).replace("\u2581", " ").encode()

    def _encoded(self, text: str, *, is_whole: bool) -> tuple[int, ...]:
        if len(text) > self._chars_max:
            raise InferenceError("too_large", f"a prompt has more than {self._chars_max} characters")
        # Half of a pair of surrogates is in JSON, and in no text.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        with self._turn:
            return tuple(self._tokenizer(clean, add_special_tokens=is_whole)["input_ids"])

    @cached_property
    def _specials(self) -> frozenset[int]:
        return frozenset(self._tokenizer.added_tokens_decoder)

    @cached_property
    def _is_byte_level(self) -> bool:
        """Whether its pieces are bytes in the disguise of letters, as GPT-2's are."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in str(backend.decoder)


class FolderTextStream:
    """
    Decodes one answer token by token. Special tokens are nothing, but for those whose text `shown` has.

    Some tokens before the new one are decoded with it, because a piece's spaces hang on what is before it.
    """

    def __init__(self, tokenizer: Any, after: Sequence[int] = (), shown: Mapping[int, str] | None = None) -> None:
        self._tokenizer = tokenizer
        self._marks = shown or {}
        # Not from the middle of a character on, as far as that can be.
        starts = (list(after[-_WINDOW // 2 - more :]) for more in range(_UNFINISHED_MAX + 1))
        self._window = next((each for each in starts if _BROKEN not in self._text(each)), [])
        # How many characters of the window's text have been shown.
        self._shown = len(self._text(self._window))
        self._pending = 0
        # The window's lengths at which all of it was whole.
        self._wholes: list[int] = []

    def push(self, token: int) -> str:
        """Return the text that is whole with this token, often nothing."""
        if token in self._marks:
            said = self.end() + self._marks[token]
            self._window, self._wholes, self._shown, self._pending = [], [], 0, 0
            return said
        self._window.append(token)
        self._pending += 1
        text = self._text(self._window)
        whole = text.rstrip(_BROKEN)
        if len(whole) < len(text) and self._pending > _UNFINISHED_MAX:
            # So many bytes are not one character: all but the newest are broken for good.
            whole = text[: max(len(whole), len(text) - _UNFINISHED_MAX)]
        if len(self._window) >= _WINDOW_MAX:
            whole = text
        fresh = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if len(whole) == len(text):
            self._pending = 0
            self._wholes.append(len(self._window))
            if len(self._window) >= _WINDOW:
                self._forget()
        return fresh

    def _forget(self) -> None:
        """Let older tokens go, up to a place where a character ends."""
        size = len(self._window)
        ends = [at for at in self._wholes if at <= size - _WINDOW // 2]
        if not ends and size < _WINDOW_MAX:
            return
        cut = ends[-1] if ends else size
        self._window, self._wholes = self._window[cut:], [at - cut for at in self._wholes if at > cut]
        self._shown = len(self._text(self._window))

    def end(self) -> str:
        """Return what is left: a character that the answer ends in the middle of."""
        left = self._text(self._window)[self._shown :]
        self._shown += len(left)
        return left

    def _text(self, tokens: list[int]) -> str:
        found: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found


def _byte_of(char: str) -> bytes:
    """Return the byte that a letter of a byte-level piece stands for."""
    code = _BYTES.get(char)
    return char.encode() if code is None else bytes([code])


def _disguises() -> Iterator[tuple[str, int]]:
    """Yield GPT-2's letters for bytes: those that can be printed are themselves, the others follow from 256 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    other = 256
    for byte in range(256):
        if byte in plain:
            yield chr(byte), byte
        else:
            yield chr(other), byte
            other += 1


_BYTES = dict(_disguises())


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """
    Raise BadInput where the template inside takes more than so much processor time of this thread.

    It is looked at line by line; what a signal does needs the main thread, and would count the engine's time too.
    """
    ends_s = time.thread_time() + seconds

    def look(frame: FrameType, event: str, arg: Any) -> Any:
        if time.thread_time() > ends_s:
            raise BadInput("invalid_field", f"the model's chat template takes more than {seconds:g} s for a chat")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
