"""`livery proto`: whether this installation speaks the wire between workers as it is written down."""

from cli.console import Json, branch, fail, show

app = branch("proto", "The gRPC wire of workers.")


@app.command("check")
def check(as_json: Json = False) -> None:
    """
    Prove that the stubs are what the .proto files give, and that they can be imported.

    With grpcio-tools installed each .proto is compiled again and compared byte for byte.

    Example: livery proto check
    """
    from wire.proto.check import SOURCES, hashes, problems

    found = problems()
    if found:
        hint = "pip install 'livery[worker]', or in a checkout: make proto"
        fail("; ".join(found), hint, "stubs_differ", as_json=as_json)
    said = hashes()
    show(
        {"isCurrent": True, "sha256": said},
        lambda: "the stubs are those of " + ", ".join(f"{source} (sha256 {said[source][:16]}…)" for source in SOURCES),
        as_json=as_json,
    )
