"""
Writes the pages that are made from code: docs/errors.md, docs/environment.md and .env.example.

`python -m docs.generate` writes them (`make docs`); with `--check` it only says which are not current (`make check`).
"""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from wire.problems import PROBLEMS, REFUSALS

ROOT = Path(__file__).resolve().parent.parent
MADE = "made by `make docs`; do not edit"

_SCALARS = {
    bool: "yes or no",
    int: "whole number",
    float: "number",
    Decimal: "number",
    Path: "path",
    SecretStr: "secret",
    SecretBytes: "secret",
}


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting: `names` are what the environment may call it, the one that wins first."""

    names: tuple[str, ...]
    kind: str
    default: str | None
    description: str


def settings_classes() -> Iterator[tuple[str, type[BaseSettings]]]:
    """Yield each room with the settings class of its config.py, rooms in alphabetical order."""
    for path in sorted(ROOT.glob("*/config.py")):
        module = importlib.import_module(f"{path.parent.name}.config")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == module.__name__:
                yield path.parent.name, value


def variables(settings: type[BaseSettings]) -> list[Variable]:
    return [
        Variable(_names(settings, name, field), _kind(field.annotation), _default(field), field.description or "")
        for name, field in settings.model_fields.items()
    ]


def _names(settings: type[BaseSettings], name: str, field: FieldInfo) -> tuple[str, ...]:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    if isinstance(alias, str):
        return (alias,)
    return (f"{settings.model_config.get('env_prefix', '')}{name}".upper(),)


def _kind(annotation: Any) -> str:
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_kind(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(annotation))
    return _SCALARS.get(annotation, "text")


def _default(field: FieldInfo) -> str | None:
    """Return the default as it would be written in the environment; None where the variable is required."""
    default = field.get_default(call_default_factory=False)
    if default is PydanticUndefined:
        return None if field.is_required() else ""
    if default is None:
        return ""
    if isinstance(default, SecretStr):
        return default.get_secret_value()  # written in the source, hence no secret
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list | frozenset | set):
        return ",".join(str(part) for part in default)
    return str(default)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def errors_page() -> str:
    lines = [
        "# Errors",
        "",
        f"<!-- {MADE} -->",
        "",
        "Every error of an HTTP door is `{type, title, status, code, detail, hint}` (RFC 9457), with `retryAfter` in",
        "seconds where waiting helps. `detail` speaks of the request; `title` and `hint` belong to the code.",
        "",
        "| code | status | title | what to do |",
        "| --- | --- | --- | --- |",
        *(f"| `{code}` | {row.status} | {_cell(row.title)} | {_cell(row.hint)} |" for code, row in PROBLEMS.items()),
        "",
        "## Refusals",
        "",
        "Why a run did not do something. They stand in its log and in `error`; they are not HTTP errors.",
        "",
        "| code | meaning |",
        "| --- | --- |",
        *(f"| `{code}` | {_cell(meaning)} |" for code, meaning in REFUSALS.items()),
    ]
    return "\n".join(lines) + "\n"


def environment_page() -> str:
    lines = [
        "# Environment",
        "",
        f"<!-- {MADE} -->",
        "",
        "The first name wins over the others, the command line over all of them, the environment over a `.env` file.",
    ]
    for room, settings in settings_classes():
        lines += ["", f"## {room}", "", "| variable | also read as | value | default | what it does |"]
        lines.append("| --- | --- | --- | --- | --- |")
        for row in variables(settings):
            others = ", ".join(_code(name) for name in row.names[1:])
            default = "required" if row.default is None else _code(row.default)
            lines.append(f"| `{row.names[0]}` | {others} | {_cell(row.kind)} | {default} | {_cell(row.description)} |")
    return "\n".join(lines) + "\n"


def env_example() -> str:
    lines = [
        f"# Every variable Livery reads, with its default; {MADE}.",
        "# Copy to .env and uncomment what you change.",
    ]
    for room, settings in settings_classes():
        lines += ["", f"# --- {room}"]
        for row in variables(settings):
            lines += [f"# {row.description}", f"#{row.names[0]}={row.default or ''}"]
    return "\n".join(lines) + "\n"


PAGES = {"docs/errors.md": errors_page, "docs/environment.md": environment_page, ".env.example": env_example}


def stale_pages() -> list[str]:
    """Return the pages whose file is not what would be written now."""
    return [name for name, page in PAGES.items() if not _is_current(ROOT / name, page())]


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        stale = stale_pages()
        if stale:
            print(f"not current: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    for name, page in PAGES.items():
        (ROOT / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
