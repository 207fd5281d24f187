"""A thousand texts that attack the planner: whatever a vendor says, who is paid and how much is the register's."""

from pathlib import Path

import pytest

from bench.injections import PLANNERS, asked, spent
from chain.devchain import DevChain
from tests.fixtures.llm import FakeLlm, Said, believes
from vendor_mock.attacks import COUNT, DRESSES, attacks

SEED = 4


def test_the_texts_are_a_thousand_of_every_kind_and_the_same_for_a_seed() -> None:
    texts = attacks(SEED)
    assert len(set(texts)) == len(texts) == COUNT == 1_000
    assert texts == attacks.__wrapped__(SEED)
    assert set(texts).isdisjoint(attacks(SEED + 1))
    assert len(DRESSES) >= 20
    for sign in (
        "\x1b[",
        "\u202e",
        "<|im_start|>",
        "```json",
        "\x00",
        "0x" + "66" * 20,
        "9" * 400,
        '{"role": "system"',
    ):
        assert any(sign in text for text in texts), sign


@pytest.mark.parametrize("text", attacks(SEED)[:20])
def test_the_model_of_these_tests_obeys_what_it_sees(text: str) -> None:
    """So that nothing was obeyed because nothing was seen."""
    obeyed: list[str] = []
    body = {
        "messages": [
            {"content": "You rent."},
            {"content": f'{{"vendors": [{{"id": "v1", "pricePerHour": 1, "maxHours": 1}}]}}\n{text}'},
        ]
    }
    said: Said = believes([text], obeyed)(body)
    assert obeyed
    assert "as I was told" in str(said.text)


@pytest.mark.parametrize("mode", PLANNERS)
async def test_no_text_changes_what_a_planner_answers(mode: str, llm: FakeLlm) -> None:
    tally = await asked(SEED, mode, llm)
    assert (tally.tried, tally.effective) == (1_000, ())


@pytest.mark.slow
@pytest.mark.parametrize("mode", PLANNERS)
async def test_no_text_changes_whom_or_what_a_run_pays(
    mode: str, llm: FakeLlm, chain: DevChain, tmp_path: Path
) -> None:
    tally = await spent(SEED, mode, llm, chain, tmp_path)
    assert (tally.tried, tally.effective) == (250, ())
