"""What `livery worker start` takes, as one table: each option is called as the setting that it sets."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

MODEL, STAGES, CLIENTS, JOBS, WORKER = (
    "The model",
    "Layers of it, and other stages",
    "Who may ask",
    "Jobs",
    "The worker",
)


class Option(NamedTuple):
    """`flags` without a leading `--`; unset, the environment or the default says what holds."""

    setting: str
    kind: type
    flags: str
    help: str
    panel: str
    hidden: bool = False


_PORT = "0 to 65535; unset and taken: a free one."

OPTIONS = (
    Option("model", str, "model", "A folder, a .gguf file, a name in the models' folder or of the upstream.", MODEL),
    Option("engine", str, "engine", "slice, gguf, ollama or openai; unset: what the model is.", MODEL),
    Option("upstream_url", str, "upstream-url", "A server that speaks OpenAI's API: vLLM, SGLang, LM Studio.", MODEL),
    Option("ollama_url", str, "ollama-url", "Where Ollama is; unset: http://localhost:11434.", MODEL),
    Option("supported_models", str, "models", "More models, with commas; loaded when they are first asked for.", MODEL),
    Option("preload_models", str, "preload", "Those of them that are loaded at the start.", MODEL),
    Option("aliases", str, "alias", "Other names: gpt-4o=llama3.1:8b, with commas.", MODEL),
    Option("context", int, "context", "Tokens of one request, prompt and answer.", MODEL),
    Option("max_concurrent_jobs", int, "max-jobs", "Answers at once; unset: what fits.", MODEL),
    Option("gguf_quant", str, "gguf-quant", "Q4_K_M and its kind; unset: the best that fits.", MODEL),
    Option("gpu_layers", int, "gpu-layers", "Layers on the GPU; unset: as many as fit.", MODEL),
    Option("kv_dtype", str, "kv-dtype", "f16, q8_0 or q4_0: what a GGUF model's cache is kept in.", MODEL),
    Option("lora", str, "lora", "LoRA adapters of a GGUF model, path=scale, with commas.", MODEL),
    Option("context_overflow", str, "context-overflow", "error, drop_oldest or summarise.", MODEL),
    Option("device", str, "device", "auto, cuda, mps or cpu.", MODEL),
    Option("model_hash", str, "model-hash", "The SHA-256 that the model must have.", MODEL),
    Option("dtype", str, "dtype", "auto, fp32, bf16 or fp16; of layers.", STAGES),
    Option("quant", str, "quant", "none, int8 or int4: what layers are shrunk to.", STAGES),
    Option("back_end", str, "back-end", "auto, lean or hf: what computes layers.", STAGES),
    Option("kv_max_mb", int, "kv-max-mb", "Memory for sessions' caches, MiB.", STAGES),
    Option("sessions_max", int, "sessions-max", "Sessions at once.", STAGES),
    Option("layers", str, "layers", "The layers that are served, as 0:12; unset: all.", STAGES),
    Option("layer_start", int, "layer-start", "The first layer.", STAGES, hidden=True),
    Option("layer_end", int, "layer-end", "The layer behind the last one.", STAGES, hidden=True),
    Option("next", str, "next", "The stage behind this one, as host:port; replicas with commas.", STAGES),
    Option("topology", Path, "topology", "A file that says who serves which layers.", STAGES),
    Option("wire_dtype", str, "wire-dtype", "same, bf16 or int8: what rows are sent as.", STAGES),
    Option("grpc_host", str, "grpc-host", "The address to listen at for gRPC.", STAGES),
    Option("grpc_port", int, "grpc-port", f"The port for gRPC, 50051; {_PORT}", STAGES),
    Option("grpc_endpoint", str, "grpc-endpoint", "The address at which stages reach it, host:port.", STAGES),
    Option("grpc_tls_cert", Path, "tls-cert", "The gRPC door's certificate, PEM.", STAGES),
    Option("grpc_tls_key", Path, "tls-key", "Its key, PEM.", STAGES),
    Option("grpc_tls_ca", Path, "tls-ca", "Whose certificates are asked for, PEM: mutual TLS.", STAGES),
    Option("grpc_insecure", bool, "grpc-insecure", "Let others in without TLS and session passes.", STAGES),
    Option("oracle_url", str, "oracle-url", "A coordinator; it serves alone yet.", STAGES),
    Option("price_in", str, "price-in", "USDC for a million tokens of prompt; unset: not sold.", CLIENTS),
    Option("price_out", str, "price-out", "USDC for a million tokens of answer.", CLIENTS),
    Option("pass_keys", str, "pass-keys", "Whose session passes hold: a JWKS URL, or a file.", CLIENTS),
    Option("priority_users", str, "priority-users", "Clients who wait before others, with commas.", CLIENTS),
    Option("kinds", str, "kinds", "Jobs to sell: fine_tune,evaluate,generate,container.", JOBS),
    Option("price_per_hour", str, "price", "USDC an hour.", JOBS),
    Option("name", str, "name", "What it is called; in lower case its vendor id.", WORKER),
    Option("data", Path, "data", "Its folder: jobs, books, keys.", WORKER),
    Option("host", str, "host", "The address to listen at; 0.0.0.0: all it has.", WORKER),
    Option("port", int, "port --api-port", f"The port, 31331; {_PORT}", WORKER),
    Option("capability_port", int, "capability-port", f"The port of the GPU check, 9876; {_PORT}", WORKER),
    Option("rpc_url", str, "rpc-url", "A node of the chain.", WORKER),
    Option("public_url", str, "public-url --node-endpoint", "The address at which buyers reach it.", WORKER),
)
_PORTS = frozenset({"port", "grpc_port", "capability_port"})


def takes(options: tuple[Option, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return what gives a command these options besides its own; it finds what was typed among its `**settings`."""

    def made(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        more = [
            inspect.Parameter(each.setting, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(each))
            for each in options
        ]
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own), *more]
        )
        command.__annotations__ |= {each.name: each.annotation for each in more}
        command.__annotations__.pop("settings", None)
        return command

    return made


def _annotation(option: Option) -> Any:
    limits: dict[str, Any] = {"min": 0, "max": 65_535} if option.setting in _PORTS else {}
    flags = [f"--{flag.removeprefix('--')}" for flag in option.flags.split()]
    told = typer.Option(*flags, help=option.help, rich_help_panel=option.panel, hidden=option.hidden, **limits)
    return Annotated[option.kind | None, told]
