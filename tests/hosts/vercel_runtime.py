"""
Serves a bundle as Vercel's Python runtime does: the entry point's file is loaded by its path under its module's name,
and found to be ASGI by its signature; uvicorn serves it in this process. `python vercel_runtime.py BUNDLE HOUSE`.

Source: vercel-runtime 0.23.2, `vc_init.py`.
"""

import importlib.util
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn

MODULE, VARIABLE = "api.app", "app"


def load(bundle: Path) -> Any:
    """Return the application: its file runs before the package that it is in is imported."""
    path = bundle.joinpath(*MODULE.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    return getattr(module, VARIABLE)


def is_asgi(application: Any) -> bool:
    call = application.__call__
    wanted = [one for one in inspect.signature(call).parameters.values() if one.default is inspect.Parameter.empty]
    return inspect.iscoroutinefunction(call) and len(wanted) == 3


def main(bundle: Path, house: Path) -> None:
    # Nothing of the checkout is there on Vercel: neither beside this file nor through an editable install.
    ours = {house, Path(__file__).resolve().parent}
    sys.path[:] = [str(bundle), *(one for one in sys.path if Path(one).resolve() not in ours)]
    os.chdir(bundle)
    application = load(bundle)
    assert is_asgi(application)
    assert {Path(str(sys.modules[room].__file__)).parents[1] for room in ("agent", "api", "wire")} == {bundle}
    config = uvicorn.Config(application, host="127.0.0.1", port=0, lifespan="auto", loop="asyncio", access_log=False)
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
