"""
Compiles the contracts beside it and writes their artifacts: `python -m chain.compile`.

Artifacts are committed, so that nobody who runs Livery needs the compiler; a test compiles afresh and compares.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def compile_contract(name: str) -> dict[str, Any]:
    """Return the artifact of `contracts/{name}.vy`: ABI, initialisation code and runtime code."""
    import vyper  # type: ignore[import-untyped]  # ships no types

    source = (HERE / "contracts" / f"{name}.vy").read_text()
    made = vyper.compile_code(source, output_formats=["abi", "bytecode", "bytecode_runtime"])
    return {
        "contract": name,
        "compiler": f"vyper {vyper.__version__}",
        "abi": made["abi"],
        "bytecode": made["bytecode"],
        "runtime": made["bytecode_runtime"],
    }


def artifact_text(name: str) -> str:
    """Return what `artifacts/{name}.json` must hold."""
    return json.dumps(compile_contract(name), indent=1) + "\n"


def main() -> None:
    """Write every artifact."""
    for path in sorted((HERE / "contracts").glob("*.vy")):
        (HERE / "artifacts" / f"{path.stem}.json").write_text(artifact_text(path.stem))


if __name__ == "__main__":
    main()
