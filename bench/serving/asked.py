"""What the scenes are to measure."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.decode.arms import ROOT
from bench.decode.models import make


@dataclass(frozen=True)
class Asked:
    """
    `turns` of each arm, of `tokens` tokens; `models` is where models are made, `kind` the numbers of their files. The
    crowd is of so many `streams` of `chunks` each.
    """

    models: Path
    model: str = "llama-88m"
    kind: str = "q8_0"
    turns: int = 7
    tokens: int = 64
    streams: int = 200
    chunks: int = 400
    seed: int = 0

    def file(self) -> Path:
        """Return the model as a GGUF file, made where it is not there yet."""
        folder = make(self.model, self.models)
        path = folder / f"{self.model}.{self.kind}.gguf"
        if not path.exists():
            command = [sys.executable, "-m", "bench.decode.gguf_file", str(folder), str(path), self.kind]
            subprocess.run(command, check=True, cwd=ROOT)
        return path
