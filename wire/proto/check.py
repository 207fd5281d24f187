"""
Whether the committed stubs are what the .proto files give: `livery proto check`.

`stubs.json` has the SHA-256 of each .proto and of each stub, as `make proto` left them, so that an edit of one without
the others is seen wherever Livery is installed. With grpcio-tools each .proto is compiled again as well, in memory, and
what comes out is compared byte for byte.
"""

import hashlib
import importlib
import json
from importlib.resources import files

SOURCES = ("inference.proto", "titancompute.proto")
STUBS = tuple(source[: -len(".proto")] + end for source in SOURCES for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"))
HASHES = "stubs.json"


def problems() -> list[str]:
    """Return in one sentence each what is wrong with the stubs, nothing where they are whole and can be imported."""
    found = _changed() or [problem for source in SOURCES for problem in _compiled_otherwise(source)]
    if not found:
        for stub in STUBS:
            try:
                if stub.endswith(".py"):
                    importlib.import_module(f"wire.proto.{stub.removesuffix('.py')}")
            except Exception as error:  # a library that is absent or too old, in whatever way the stub says it
                found.append(f"wire/proto/{stub} cannot be imported: {error}")
    return found


def hashes() -> dict[str, str]:
    """Return the SHA-256 of each .proto and of each stub as they are. Raises OSError: a file is missing."""
    return {name: hashlib.sha256(_read(name)).hexdigest() for name in (*SOURCES, *STUBS)}


def _changed() -> list[str]:
    try:
        now = hashes()
        then = json.loads(_read(HASHES))
    except OSError as error:
        return [f"wire/proto is not whole: {error}"]
    except ValueError:
        return [f"wire/proto/{HASHES} is no JSON: run `make proto`"]
    return [f"wire/proto/{name} is not as `make proto` left it: run it" for name in now if now[name] != then.get(name)]


def _compiled_otherwise(source: str) -> list[str]:
    try:
        compiler = importlib.import_module("grpc_tools._protoc_compiler")
    except ImportError:
        return []  # only who changes the .proto has a compiler
    root = str(files("wire").joinpath("..")).encode()
    made = {}
    for compile_it in (compiler.get_protos, compiler.get_services):
        try:
            made.update(dict(compile_it(f"wire/proto/{source}".encode(), [root])))
        except Exception as error:  # the compiler's own, many, each with its place in the text
            return [f"wire/proto/{source} cannot be compiled: {error}"]
    return [
        f"{name.decode()} is not what wire/proto/{source} gives: run `make proto`"
        for name, text in made.items()
        if text != _read(name.decode().rpartition("/")[2])
    ]


def _read(name: str) -> bytes:
    return files("wire.proto").joinpath(name).read_bytes()


if __name__ == "__main__":
    print(json.dumps(hashes(), indent=1))
