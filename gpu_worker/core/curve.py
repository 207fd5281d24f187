"""A loss curve as a PNG: two lines, a frame and the numbers at its ends, in 8-bit colours of a palette."""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 28
WHITE, FRAME, TRAINED, HELD_OUT, INK = range(5)
_PALETTE = ((255, 255, 255), (208, 208, 208), (120, 160, 220), (200, 60, 40), (60, 60, 60))
_DOT = 2
# Three wide, five high; a row is three bits.
_DIGITS = {
    "0": (7, 5, 5, 5, 7), "1": (2, 6, 2, 2, 7), "2": (7, 1, 7, 4, 7), "3": (7, 1, 7, 1, 7), "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7), "6": (7, 4, 7, 5, 7), "7": (7, 1, 1, 2, 2), "8": (7, 5, 7, 5, 7), "9": (7, 5, 7, 1, 7),
    ".": (0, 0, 0, 0, 2), "-": (0, 0, 7, 0, 0),
}  # fmt: skip
_DIGIT_SCALE = 2

Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a point lies on the picture: steps from `first` to `last`, losses from `low` to `high`."""

    first: int
    last: int
    low: float
    high: float

    def place(self, step: int, loss: float) -> tuple[int, int]:
        """Return the column and the row of a point."""
        along = (step - self.first) / max(self.last - self.first, 1)
        up = (loss - self.low) / ((self.high - self.low) or 1.0)
        column = _LEFT + round(along * (WIDTH - _LEFT - _RIGHT - 1))
        return column, HEIGHT - _BOTTOM - 1 - round(up * (HEIGHT - _TOP - _BOTTOM - 1))


def frame_of(points: Sequence[Point]) -> Frame:
    """Return the smallest frame that holds all of `points`."""
    steps, losses = [step for step, _ in points] or [0], [loss for _, loss in points] or [0.0]
    return Frame(min(steps), max(steps), min(losses), max(losses))


def png(trained: Sequence[Point], held_out: Sequence[Point]) -> bytes:
    """
    Return the picture: the losses of training as a line, those on what is held out as a line with dots.

    Points without a finite loss are left out. Source: PNG (RFC 2083).
    """
    lines = [[point for point in points if math.isfinite(point[1])] for points in (trained, held_out)]
    frame = frame_of([*lines[0], *lines[1]])
    pixels = bytearray(WIDTH * HEIGHT)
    for row in range(5):
        loss = frame.low + (frame.high - frame.low) * row / 4
        left, right = frame.place(frame.first, loss), frame.place(frame.last, loss)
        _line(pixels, left, (max(right[0], WIDTH - _RIGHT - 1), right[1]), FRAME)
        _write(pixels, 4, left[1] - 5, f"{loss:.4g}"[:6])
    _write(pixels, _LEFT, HEIGHT - _BOTTOM + 10, str(frame.first))
    last = str(frame.last)
    _write(pixels, WIDTH - _RIGHT - 4 * _DIGIT_SCALE * len(last), HEIGHT - _BOTTOM + 10, last)
    for points, colour in zip(lines, (TRAINED, HELD_OUT), strict=True):
        placed = [frame.place(*point) for point in points]
        for start, end in pairwise(placed):
            _line(pixels, start, end, colour)
        for column, row in placed if colour == HELD_OUT or len(placed) == 1 else ():
            for down in range(-_DOT, _DOT + 1):
                _line(pixels, (column - _DOT, row + down), (column + _DOT, row + down), colour)
    return _encoded(pixels)


def _line(pixels: bytearray, start: tuple[int, int], end: tuple[int, int], colour: int) -> None:
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for at in range(length + 1):
        column = start[0] + round((end[0] - start[0]) * at / length)
        row = start[1] + round((end[1] - start[1]) * at / length)
        if 0 <= column < WIDTH and 0 <= row < HEIGHT:
            pixels[row * WIDTH + column] = colour


def _write(pixels: bytearray, column: int, row: int, text: str) -> None:
    for number, sign in enumerate(text):
        for down, bits in enumerate(_DIGITS.get(sign, (0,) * 5)):
            for along in range(3):
                if bits >> (2 - along) & 1:
                    left = column + (4 * number + along) * _DIGIT_SCALE
                    for part in range(_DIGIT_SCALE):
                        top = row + down * _DIGIT_SCALE + part
                        _line(pixels, (left, top), (left + _DIGIT_SCALE - 1, top), INK)


def _encoded(pixels: bytearray) -> bytes:
    rows = b"".join(b"\0" + pixels[row * WIDTH : (row + 1) * WIDTH] for row in range(HEIGHT))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", bytes(value for colour in _PALETTE for value in colour)),
            _chunk(b"IDAT", zlib.compress(rows, 6)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
