"""
The planner that asks a language model to choose among what the bandit holds for equally good.

It is asked only where there is something to choose. Its wish to wait or to abort counts only where the bandit has it
too, which then was not asked; and whatever else it says, or does not say, the bandit's own wish stands.
"""

from dataclasses import replace

from agent.core.asking import SYSTEM, Answer, Asked, Unreadable, put, read_answer, readable
from agent.core.bandit import advise, choose
from agent.core.planning import Proposal, Question
from outbound.chat import ChatEndpoint, ChatQuestion, Unusable

RAW_CHARS_MAX = 4_000


class LlmPlanner:
    mode = "llm"

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self._endpoint = endpoint

    async def propose(self, question: Question) -> Proposal:
        """Return the model's choice, or the bandit's wish with the reason why it stands."""
        advice = advise(question)
        wish = replace(advice.proposal, mode=self.mode)
        if wish.action != "start_job" or len(advice.candidates) < 2:
            return wish
        asked = put(question, advice.candidates)
        form = ChatQuestion(system=SYSTEM, user=asked.user, name="decide", schema=asked.schema)
        reply = await self._endpoint.ask(form, lambda text: _read(text, asked))
        wish = replace(wish, prompt=f"{SYSTEM}\n\n{asked.user}", raw=readable(reply.raw, RAW_CHARS_MAX))
        said = reply.value
        if said is None:
            return replace(wish, fallback=True, reason=f"fallback: {reply.why}; {wish.reason}")
        why = said.reason or "no reason given"
        if said.candidate is None:
            return replace(wish, reason=f"the model would {said.action} ({why}), the bandit would not: {wish.reason}")
        chosen = choose(advice, said.candidate, f"the model chose it among {len(asked.labels)}: {why}")
        return replace(chosen, mode=self.mode, prompt=wish.prompt, raw=wish.raw)


def _read(text: str, asked: Asked) -> Answer | Unusable:
    found = read_answer(text, asked)
    return Unusable(found.problem, found.formed) if isinstance(found, Unreadable) else found
