"""
How fast this machine trains: `livery bench worker`.

It is the figure that the worker tells in `/health` and in its offers, measured by the same program and kept in the same
place: tokens of the reference model that were trained, by the seconds that it took.
"""

import argparse
import asyncio
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import WorkerError
from gpu_worker.wiring import machine
from wire import decimal_json


def main(arguments: list[str] | None = None) -> int:
    """Measure, or tell what was measured before; return the exit code."""
    reader = argparse.ArgumentParser(prog="livery bench worker", description=__doc__)
    reader.add_argument("--json", action="store_true", help="print the JSON document alone")
    reader.add_argument("--again", action="store_true", help="measure anew, whatever was measured before")
    options = reader.parse_args(arguments)
    if missing := machine.missing_packages():
        print(f"what trains is not installed: {', '.join(missing)}: pip install 'livery[worker]'", file=sys.stderr)
        return 1
    try:
        document = asyncio.run(_measured(WorkerSettings(), again=options.again))
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    if not options.json:
        Console().print(_page(document))
    print(decimal_json.dumps(document).decode())
    return 0


async def _measured(settings: WorkerSettings, *, again: bool) -> dict[str, Any]:
    here = await machine.open_hardware(settings).read()
    device = machine.device(settings, here)
    measure = machine.open_measure(settings, here)
    if again:
        measure.forget(device)
    speed = await measure.speed(device)
    return {
        "benchmarkTokPerSec": speed.tokens_per_s,
        "memoryBytesPerS": speed.memory_bytes_per_s,
        "flops": speed.flops,
        "layerS": speed.layer_s,
        "startS": speed.start_s,
        "device": device.name,
        "gpuType": device.gpu_type,
        "threads": settings.threads_of(here.cpu_count),
    }


def _page(document: dict[str, Any]) -> Table:
    page = Table("what", "how much", header_style="bold", box=None, pad_edge=False)
    page.add_row("device", f"{document['gpuType']} ({document['device']}), {document['threads']} threads")
    page.add_row("training", f"{document['benchmarkTokPerSec']} tokens/s of the reference model")
    page.add_row("products", f"{document['flops'] / 1e9:.1f} GFLOPs")
    page.add_row("memory", f"{document['memoryBytesPerS'] / 1e9:.1f} GB/s")
    page.add_row("a layer, at least", f"{float(document['layerS']) * 1e3:.2f} ms a step")
    page.add_row("start of a job", f"{float(document['startS']):.1f} s")
    return page


if __name__ == "__main__":
    sys.exit(main())
