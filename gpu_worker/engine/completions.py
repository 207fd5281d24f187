"""The file of completions that a generating job makes: a line a record, in their order, whole batches at a time."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from gpu_worker.core.dataset import Record
from gpu_worker.core.errors import BadInput
from gpu_worker.core.folder import Spec
from gpu_worker.engine.checkpoint import checkpoint_of
from gpu_worker.engine.result import End

ANSWERS = "completions.jsonl"


class Completions:
    """The file, begun anew or with what the checkpoint has. `step` batches of `steps` are in it."""

    def __init__(self, spec: Spec, folder: Path, steps: int) -> None:
        self.step, self.steps = 0, steps
        self._file = folder / ANSWERS
        found = checkpoint_of(spec, folder, steps=steps)
        if found is None:
            self._file.write_bytes(b"")
            return
        if not (found / ANSWERS).is_file():
            raise BadInput("checkpoint_mismatch", "the checkpoint has no completions")
        shutil.copyfile(found / ANSWERS, self._file)
        self.step = spec.resume_step or 0

    def add(self, records: Sequence[Record], texts: Sequence[str]) -> None:
        """Write what was said to the records of the next batch."""
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(_line(record, text) for record, text in zip(records, texts, strict=True))
        self.step += 1

    def writer(self) -> Callable[[Path], None]:
        """Return what writes the file, as it is now, into a folder."""
        # Lines are only added, by this thread: so many bytes of them stay what they are.
        size = self._file.stat().st_size

        def write(into: Path) -> None:
            with self._file.open("rb") as source:
                (into / ANSWERS).write_bytes(source.read(size))

        return write

    def end(self, records: int) -> End:
        """Return the job's end, all of its records written."""
        return End(
            artifact=ANSWERS,
            write=self.writer(),
            final_metrics={"completions": float(records)},
            report={"completions": records},
        )


def _line(record: Record, text: str) -> str:
    known = {"id": record["id"]} if "id" in record else {}
    return json.dumps({**known, "completion": text}, ensure_ascii=False) + "\n"
