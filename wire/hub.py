"""What Hugging Face's hub tells of a repository, as far as fetching a file needs it. Source: its API's `revision`."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from wire.lenient import Lenient

FILES_MAX = 10_000
BYTES_MAX = 2**50


class Blob(Lenient):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0, le=BYTES_MAX)]


class Sibling(Lenient):
    """A file; `lfs` is there where its hash is known."""

    rfilename: Annotated[str, Field(max_length=1_000)]
    lfs: Blob | None = None


class Repository(Lenient):
    """`sha` is the commit that `siblings` are the files of."""

    sha: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    siblings: Annotated[
        tuple[Sibling, ...], BeforeValidator(lambda value: () if value is None else value), Field(max_length=FILES_MAX)
    ] = ()
