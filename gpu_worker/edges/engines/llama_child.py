"""
llama.cpp's server over one GGUF file, in a process of its own: `python -m gpu_worker.edges.engines.llama_child`.

The first line of its stdin is a `LlamaSpec`. When the model is there it says where it listens: `{"url": ...}`, one
line. The end of its stdin ends it, and so does the end of who started it. A broken file, a bad number and a poisoned
chat template kill or hang this process, and nothing else.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from gpu_worker.core.inference.llama import SPEC_BYTES_MAX, LlamaSpec
from gpu_worker.core.quantization.estimate import cells_of

_DEATH_SIGNAL = 1
HOST = "127.0.0.1"

Ready = Callable[[str], None]


def main() -> None:
    """Serve what the first line says. With the name of a package as its argument it only says whether that offloads."""
    _end_with_parent()
    # Libraries write on the standard output too; ours is kept for the one line.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = LlamaSpec.model_validate_json(sys.stdin.buffer.readline(SPEC_BYTES_MAX))
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    if spec.memory_bytes_max is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (spec.memory_bytes_max, spec.memory_bytes_max))
    with tempfile.TemporaryDirectory(prefix="livery-lora-") as name:
        folder = Path(name)
        _CARRIERS[spec.package](spec, folder, lambda url: _tell(told, url, folder))


def _tell(told: TextIO, url: str, folder: Path) -> None:
    told.write(json.dumps({"url": url}) + "\n")
    told.flush()
    # What was converted is loaded, and this process will be ended without a chance to tidy up.
    for file in folder.iterdir():
        file.unlink()


def _end_with_parent() -> None:
    """Die when the worker dies, even where this process hangs in llama.cpp. Only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _end_with_stdin() -> None:
    while os.read(0, 4_096):
        pass
    os._exit(0)


def _xllamacpp(spec: LlamaSpec, folder: Path, ready: Ready) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = spec.path
    params.model_alias = {spec.name}
    params.n_ctx = cells_of(spec.context) * spec.slots
    params.n_parallel = spec.slots
    # A text that is pooled must be computed in one piece: apart caches would cut texts of several lengths to pieces.
    params.kv_unified = spec.embeds
    params.n_batch = params.n_ubatch = max(spec.batch, cells_of(spec.context)) if spec.embeds else spec.batch
    params.n_gpu_layers = spec.gpu_layers
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = spec.threads
    cache = {"f16": "GGML_TYPE_F16", "q8_0": "GGML_TYPE_Q8_0", "q4_0": "GGML_TYPE_Q4_0"}[spec.kv_dtype]
    params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, cache)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in _adapters(spec, folder)]
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.embedding = spec.embeds
    # What fits was decided before; it is not to choose a shorter context by itself.
    params.fit_params = False
    params.ctx_shift = False
    params.cache_ram_mib = 0
    params.api_keys = [spec.key]
    params.hostnames, params.port = [HOST], 0
    params.ui = params.endpoint_props = False
    params.endpoint_slots = params.endpoint_metrics = True
    params.cors_origins = ""
    params.n_threads_http = spec.slots + 4
    params.verbosity = 1
    server = xllamacpp.Server(params)
    ready(server.listening_address)
    threading.Event().wait()


def _llama_cpp(spec: LlamaSpec, folder: Path, ready: Ready) -> None:
    from gpu_worker.edges.engines.llama_source import serve

    serve(spec, _adapters(spec, folder), ready)


def _adapters(spec: LlamaSpec, folder: Path) -> list[tuple[str, float]]:
    """Return the adapters as GGUF files; what peft saved is converted into `folder`."""
    return [(_converted(path, spec.path, folder / f"{at}.gguf"), scale) for at, (path, scale) in enumerate(spec.lora)]


def _converted(path: str, model: str, out: Path) -> str:
    if not Path(path).is_dir():
        return path
    command = (sys.executable, "-m", "gpu_worker.engine.gguf.convert", path, str(out), "--for", model)
    if subprocess.run(command).returncode != 0:  # noqa: S603 - a program of ours, with paths of the owner's
        raise SystemExit("an adapter (lora) of peft's cannot be converted")
    return str(out)


def _offloads(package: str) -> bool:
    """Return whether this build of llama.cpp computes on a GPU of this machine."""
    if package == "xllamacpp":
        import xllamacpp

        return any("GPU" in str(device["type"]) for device in xllamacpp.get_device_info())
    import llama_cpp

    return bool(llama_cpp.llama_supports_gpu_offload())


_CARRIERS: dict[str, Callable[[LlamaSpec, Path, Ready], None]] = {
    "xllamacpp": _xllamacpp,
    "llama-cpp-python": _llama_cpp,
}

if __name__ == "__main__":
    try:
        print(json.dumps(_offloads(sys.argv[1]))) if sys.argv[1:] else main()
    except BaseException:
        traceback.print_exc()
        # Threads of llama.cpp that are waited for may hang.
        os._exit(1)
