"""What a command needs that is not in the base install, told in one sentence with the command that brings it."""

from cli.console import fail

INSTALL = "pip install 'livery[worker]'"


def missing_for_worker() -> tuple[str, ...]:
    """Return what of `[worker]` is not installed; imports none of it."""
    from gpu_worker.wiring.machine import missing_packages

    return missing_packages()


def need_worker(*, as_json: bool = False) -> None:
    """Return where what trains is installed; else say what is missing and end with exit code 1."""
    if missing := missing_for_worker():
        fail(
            f"what trains is not installed: {', '.join(missing)} cannot be found",
            INSTALL,
            "not_installed",
            as_json=as_json,
        )
