"""An Ollama's models, for scripts: `from gpu_worker.model_manager import ModelManager`."""

from collections.abc import AsyncGenerator, Iterable
from typing import Any

import orjson

from gpu_worker.config import WorkerSettings
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.engines.ollama_client import OllamaClient, read_line
from gpu_worker.edges.engines.ollama_models import OllamaModels
from gpu_worker.model_config import DEFAULT_OLLAMA_URL
from gpu_worker.wiring.machine import open_hardware
from gpu_worker.wiring.quantization import memory_for
from outbound.http import HttpClient


class ModelManager:
    """
    What an Ollama has, fetches and says. It holds nothing open; every method raises InferenceError or OwnersFault.

    A model is fetched once at a time, and not at all where a quantisation of it is installed that fits.
    """

    def __init__(self, ollama_host: str = DEFAULT_OLLAMA_URL, settings: WorkerSettings | None = None) -> None:
        self._settings = settings or WorkerSettings()
        self._client = OllamaClient(ollama_host, HttpClient())
        self._memory: int | None = None
        self._models = OllamaModels(self._client, (), memory_bytes=lambda: self._memory)

    @property
    def base_url(self) -> str:
        return self._client.base_url

    async def list_models(self) -> list[dict[str, Any]]:
        """Return what is installed."""
        return [tag.model_dump() for tag in await self._client.installed()]

    async def loaded_models(self) -> list[dict[str, Any]]:
        """Return what is in memory; `size_vram` bytes of it are a GPU's."""
        return [tag.model_dump() for tag in await self._client.loaded()]

    async def get_model_info(self, model: str) -> dict[str, Any] | None:
        """Return what is told of a model, None: it is not installed."""
        try:
            return (await self._client.show(model)).model_dump()
        except InferenceError as error:
            if error.code == "not_ready":
                return None
            raise

    async def select_optimal_model_variant(self, model: str) -> str:
        """Return what is used for `model`: the installed variant that suits the memory best, else `model` itself."""
        machine = await open_hardware(self._settings).read()
        memory = memory_for(self._settings, machine)
        self._memory = memory.vram_bytes if memory.has_gpu else memory.ram_bytes
        held = self._models.add(model)
        await self._models.look()
        return held.variant

    async def preload_models(self, models: Iterable[str]) -> dict[str, str]:
        """Have models installed and loaded. Returns the variant that is used for each."""
        for name in models:
            await self.select_optimal_model_variant(name)
            await self._models.prepare(self._models.models[name], lambda what, done, total: None)
        return {name: held.variant for name, held in self._models.models.items()}

    async def pull_model(self, model: str) -> None:
        """Have a model installed, whatever else is."""
        async for _ in self._client.pull(model):
            pass

    async def stream_inference(self, model: str, prompt: str, **options: float) -> AsyncGenerator[dict[str, Any], None]:
        """
        Yield what Ollama says to a prompt, line by line; the last one is `done`.

        Example: `async for line in manager.stream_inference("llama3.1", "Hello", num_predict=50): ...`
        """
        variants = await self.preload_models([model])
        told = {"num_ctx": self._models.models[model].context, **options}
        body = {"model": variants[model], "prompt": prompt, "stream": True, "options": told}
        async with self._client.opened("/api/generate", body) as lines:
            async for line in lines:
                read_line(line)
                yield orjson.loads(line)
