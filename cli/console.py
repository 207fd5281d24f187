"""
What every command shares: tables or JSON on stdout, one-sentence errors on stderr, exit codes.

0 it is done · 1 it failed, with the reason · 2 the command line is wrong.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wire import decimal_json
from wire.model import Body
from wire.problems import PROBLEMS

T = TypeVar("T")

# Wide where nobody's window limits it: a transaction hash that is cut cannot be looked up.
PIPED_COLUMNS = 180

out = Console(width=None if Console().is_terminal else PIPED_COLUMNS)
err = Console(stderr=True, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def branch(name: str, help: str) -> typer.Typer:
    """Return a branch of the command tree that shows its help when called bare."""
    return typer.Typer(
        name=name, help=help, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False
    )


def words(text: object, style: str = "") -> Text:
    """Return somebody's text as it is: no markup of theirs is obeyed, no control character reaches the terminal."""
    return Text(
        "".join(
            letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in str(text)
        ),
        style,
    )


def fail(message: str, hint: str = "", code: str = "failed", *, exit_code: int = 1, as_json: bool = False) -> NoReturn:
    """Say why and end with `exit_code`."""
    if as_json:
        print_json({"code": code, "detail": message, "hint": hint})
    else:
        err.print(Text.assemble(("error ", "bold red"), words(message)))
        if hint:
            err.print(Text.assemble(("hint  ", "dim"), words(hint)))
    raise typer.Exit(exit_code)


def run(work: Coroutine[Any, Any, T], *, as_json: bool = False) -> T:
    """Return what `work` returns; the errors that people can do something about become one sentence and exit code 1."""
    from agent.core.errors import AgentError, VendorError
    from chain.errors import ChainError
    from livery.client import Exposed, ProblemError, Unreachable
    from wire.model import first_error
    from wire.money import MoneyError

    try:
        return asyncio.run(work)
    except ValidationError as error:
        fail(first_error(error), "See docs/environment.md.", "invalid_setting", as_json=as_json)
    except ProblemError as error:
        problem = error.problem
        fail(f"{problem.title}: {problem.detail}", problem.hint, problem.code, as_json=as_json)
    except Unreachable as error:
        fail(str(error), "Start one with `livery up`, or add --local to run without a server.", as_json=as_json)
    except Exposed as error:
        hint = "Name it with --url and https://, or keep LIVERY_URL and LIVERY_API_SECRET in one place."
        fail(str(error), hint, "secret_exposed", as_json=as_json)
    except VendorError as error:
        fail(f"the vendor did not serve: {error}", "Check its endpoint and its secret.", as_json=as_json)
    except (AgentError, MoneyError, ChainError) as error:
        fail(str(error), PROBLEMS[error.code].hint, error.code, as_json=as_json)


def print_json(value: Any) -> None:
    """Print `value`, wire bodies and decimals included, as one JSON document."""
    document = value.document() if isinstance(value, Body) else value
    print(decimal_json.dumps(document).decode())


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """Return a table; numbers are the caller's to format."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else words("" if cell is None else cell) for cell in row))
    return made


def show(value: Any, render: Callable[[], Any], *, as_json: bool) -> None:
    """Print `value` as JSON, or what `render` returns."""
    if as_json:
        print_json(value)
    else:
        rendered = render()
        out.print(words(rendered) if isinstance(rendered, str) else rendered, soft_wrap=isinstance(rendered, str))
