"""Every row of the five systems that this stage owes is shown by a test, or decided in docs/coverage.md."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.tree import ROOT, is_test, tracked_files, tree_of

ROWS = (*range(1, 22), *range(24, 28), *range(31, 43), 58, 80, 81, 87, 147, 148, 150, 152, 153, 155, 157)


def marked() -> Iterator[int]:
    """Yield the numbers of every `@pytest.mark.row(...)` in the tests."""
    for path in tracked_files():
        if not is_test(path) or path.suffix != ".py":
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.row":
                yield from (
                    argument.value
                    for argument in node.args
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, int)
                )


MARKED = frozenset(marked())


@pytest.mark.parametrize("number", ROWS)
def test_a_row_has_its_test_or_its_reason(number: int) -> None:
    page = ROOT / "docs/coverage.md"
    reasons = page.read_text(encoding="utf-8") if page.is_file() else ""
    decided = re.search(rf"(?m)^\W*(row )?{number}\b\W+\w.*", reasons)
    assert number in MARKED or decided, f"row {number} has neither a test nor a line in docs/coverage.md"
