"""
The models that a worker has an Ollama serve: which variant of each is there, and how one that is missing gets there.

A model is fetched and loaded once however many ask for it. Only what the owner named is ever fetched.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.quantization.choice import choose_installed
from gpu_worker.edges.engines.ollama_client import OllamaClient
from gpu_worker.edges.engines.once import Once
from gpu_worker.inference.text.engine import ModelCard
from gpu_worker.model_port import Tell
from wire.ollama import Shown, Tag, is_same, is_variant, split_name

CONTEXT_USUAL = 8192
LOAD_S = 600.0
FAULT_S = 60.0
# A worker that is gone keeps no memory: it says every half a minute that it goes on.
KEEP_ALIVE = "10m"
LAYERS_MAX = 1_000
MIB = 1024 * 1024
# Where nobody knows how much memory there is, the best quality is taken.
UNKNOWN = 2**60
_HUB = ("hf.co/", "huggingface.co/")

logger = logging.getLogger("livery.worker.ollama")


@dataclass(slots=True)
class Model:
    """
    A model that is served as `name`. `wanted` is what is fetched where none of it is there, `variant` what is used.

    `tag` is what is installed, `loaded` what is in memory, `progress` how far it is on its way there.
    `fault` is why it could not be fetched; until `fault_until_s` nobody tries again.
    """

    name: str
    wanted: str
    variant: str
    context_max: int
    tag: Tag | None = None
    loaded: Tag | None = None
    shown: Shown = field(default_factory=Shown)
    progress: str = "it waits for its turn"
    fault: str = ""
    fault_until_s: float = 0.0

    @property
    def context(self) -> int:
        """What is asked for with every request: another one would load the model anew."""
        return min(self.shown.context or self.context_max, self.context_max)

    @property
    def model_hash(self) -> str:
        return "" if self.tag is None else self.tag.sha256

    def can(self, what: str) -> bool:
        """Return whether the model has a capability; where none is told, any."""
        return not self.shown.capabilities or what in self.shown.capabilities

    def card(self) -> ModelCard:
        return ModelCard(
            name=self.name,
            context=self.context,
            model_hash=self.model_hash,
            embeds="embedding" in self.shown.capabilities,
            is_loaded=self.loaded is not None,
            quant="" if self.tag is None else self.tag.details.quantization_level[:32],
            bytes=0 if self.tag is None else self.tag.size,
            vram_bytes=0 if self.loaded is None else self.loaded.size_vram,
        )


class OllamaModels:
    """
    Args:
        names: what is served.
        context: tokens of a request at most, prompt and answer. None: the model's own, at most CONTEXT_USUAL.
        quant: what a model of the hub (`hf.co/...`) without a tag is fetched in; auto: what Ollama takes.
        memory_bytes: asked how much is free for a model, None: that is not known.
    """

    def __init__(
        self,
        client: OllamaClient,
        names: Iterable[str],
        *,
        context: int | None = None,
        quant: str = "auto",
        memory_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._client, self._memory_bytes = client, memory_bytes
        self._context, self._quant = context or CONTEXT_USUAL, quant
        self._once: Once[None] = Once()
        self.models: dict[str, Model] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> Model:
        """Return the model `name`, which is served from now on."""
        wanted = _pulled_as(name, self._quant)
        return self.models.setdefault(name, Model(name, wanted, wanted, self._context))

    async def look(self) -> None:
        """Read what is installed and loaded now. Raises InferenceError."""
        installed, loaded = await self._client.installed(), await self._client.loaded()
        for model in self.models.values():
            self._settle(model, installed)
            model.loaded = next((tag for tag in loaded if is_same(tag.name, model.variant)), None)

    def lose(self) -> None:
        """Take nothing for loaded: Ollama is gone."""
        for model in self.models.values():
            model.loaded = None

    async def describe(self, model: Model) -> None:
        """Read what an installed model can. Raises InferenceError."""
        model.shown = await self._client.show(model.variant)

    async def prepare(self, model: Model, tell: Tell) -> None:
        """
        Have a model fetched where it is missing, and loaded.

        Raises:
            OwnersFault: it cannot be; for a while after that nobody is asked again.
            InferenceError: Ollama does not answer.
        """
        if time.monotonic() < model.fault_until_s:
            raise OwnersFault(model.fault)
        await self._once.do(model.name, lambda: self._prepare(model, tell))

    async def load(self, model: Model, timeout_s: float = LOAD_S) -> None:
        """Have an installed model loaded, or go on being so. Raises InferenceError."""
        embeds = model.shown.only_embeds
        await self._client.load(model.variant, KEEP_ALIVE, model.context, embeds=embeds, timeout_s=timeout_s)

    async def close(self) -> None:
        await self._once.close()

    async def _prepare(self, model: Model, tell: Tell) -> None:
        await self.look()
        if model.tag is None:
            await self._pull(model, tell)
            await self.look()
        if model.tag is None:
            raise OwnersFault(f"Ollama has fetched {model.variant}, and does not have it")
        model.progress = "it is read into memory"
        tell(f"loading {model.variant}", 0, 1)
        await self.describe(model)
        await self.load(model)
        await self.look()
        # It said that it is loaded; where it does not list it, it is not asked again.
        model.loaded = model.loaded or model.tag

    async def _pull(self, model: Model, tell: Tell) -> None:
        sizes: dict[str, tuple[int, int]] = {}
        logger.info("ollama fetches %s", model.variant)
        try:
            async with aclosing(self._client.pull(model.variant)) as lines:
                async for line in lines:
                    if line.digest and (line.digest in sizes or len(sizes) < LAYERS_MAX):
                        sizes[line.digest] = (min(line.completed, line.total), line.total)
                    done, total = (sum(each[at] for each in sizes.values()) for at in (0, 1))
                    model.progress = f"{done // MIB} of {total // MIB} MiB are fetched"
                    tell(f"fetching {model.variant}", done, total)
        except InferenceError as error:
            model.fault = f"Ollama cannot fetch {model.variant}: see its log, and whether that is its name"
            model.fault_until_s = time.monotonic() + FAULT_S
            raise OwnersFault(model.fault) from error

    def _settle(self, model: Model, installed: Sequence[Tag]) -> None:
        """Take what is installed of a model: the variant in use, the very one, else the best of its quantisations."""
        for name in (model.variant, model.wanted):
            model.tag = next((tag for tag in installed if is_same(tag.name, name)), None)
            if model.tag is not None:
                break
        else:
            model.tag = self._chosen(model.wanted, [tag for tag in installed if is_variant(tag.name, model.wanted)])
        model.variant = model.wanted if model.tag is None else model.tag.name

    def _chosen(self, wanted: str, tags: Sequence[Tag]) -> Tag | None:
        """Return the best of some variants, None where none fits. Their sizes are of their files, not guessed."""
        memory = self._memory_bytes()
        name = choose_installed(wanted, {tag.name: tag.size for tag in tags}, UNKNOWN if memory is None else memory)
        return next((tag for tag in tags if tag.name == name), None)


def _pulled_as(name: str, quant: str) -> str:
    """Return what a model is fetched as: one of the hub that names no quantisation, in the owner's."""
    is_open = quant != "auto" and name.startswith(_HUB) and not split_name(name).tag
    return f"{name}:{quant}" if is_open else name
