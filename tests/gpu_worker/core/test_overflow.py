"""Which messages of a long chat may go, and about how many tokens a text is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.overflow import SUMMARY, chat_of, estimated, tokens_of, transcript
from wire.openai import ChatMessage


def message(role: str, content: str = "x") -> ChatMessage:
    return ChatMessage.model_validate({"role": role, "content": content})


def roles(messages: tuple[ChatMessage, ...]) -> list[str]:
    return [each.role for each in messages]


def test_a_turn_is_a_question_with_all_that_follows_it() -> None:
    told = [message(role) for role in ("system", "user", "assistant", "user", "assistant", "tool", "assistant", "user")]
    chat = chat_of(told)
    assert [roles(turn) for turn in chat.turns] == [
        ["user", "assistant"],
        ["user", "assistant", "tool", "assistant"],
        ["user"],
    ]
    assert chat.without(0) == tuple(told)
    assert roles(chat.without(1)) == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert roles(chat.without(2)) == ["system", "user"]
    assert roles(chat.oldest(2)) == ["user", "assistant", "user", "assistant", "tool", "assistant"]


@given(st.lists(st.sampled_from(["system", "developer", "user", "assistant", "tool"]), min_size=1, max_size=12))
def test_what_goes_and_what_stays_is_the_chat(all_roles: list[str]) -> None:
    told = [message(role, str(at)) for at, role in enumerate(all_roles)]
    chat = chat_of(told)
    for gone in range(len(chat.turns) + 1):
        kept = (*chat.without(gone), *chat.oldest(gone))
        assert sorted(each.text for each in kept) == sorted(each.text for each in told)
        assert all(each in chat.without(gone) for each in told if each.role in ("system", "developer"))


def test_a_summary_stands_with_what_the_system_says_as_one_message() -> None:
    chat = chat_of(
        [message("system", "Be brief."), message("user", "a"), message("assistant", "b"), message("user", "c")]
    )
    first, last = chat.without(1, "They said a and b.")
    assert (first.role, first.text) == ("system", f"Be brief.\n\n{SUMMARY}They said a and b.")
    assert last.text == "c"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("four", 1), ("12345", 2), ("世界您好", 4), ("こんにちは", 5), ("안녕", 2), ("Привет", 3), ("👋", 1)],
)
def test_a_character_of_chinese_japanese_or_korean_is_a_token(text: str, tokens: int) -> None:
    assert tokens_of(text) == tokens


@given(st.lists(st.text(max_size=20), max_size=5))
def test_a_longer_chat_is_never_estimated_shorter(texts: list[str]) -> None:
    said = [message("user", text) for text in texts]
    sizes = [estimated(said[:count]) for count in range(len(said) + 1)]
    assert sizes == sorted(sizes)


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8), st.integers(1, 60))
def test_a_transcript_has_the_end_of_the_chat_and_is_not_longer_than_asked(texts: list[str], most: int) -> None:
    told = transcript([message("user", text) for text in texts], most)
    assert tokens_of(told) <= most
    assert "\n".join(f"user: {text}" for text in texts).endswith(told)
