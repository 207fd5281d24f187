"""
The random number of a position: a function of (seed, position) alone, the same on every machine and after every resume.

Source: Philox 4x64 with 10 rounds, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". The key is the
seed, the counter the position.
"""

_MASK = (1 << 64) - 1
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def philox(seed: int, position: int) -> tuple[int, int, int, int]:
    """Return the four 64-bit words of counter (position, 0, 0, 0) under key (seed, 0)."""
    a, b, c, d = position & _MASK, 0, 0, 0
    key, other = seed & _MASK, 0
    for _ in range(_ROUNDS):
        first, second = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (second >> 64) ^ b ^ key, second & _MASK, (first >> 64) ^ d ^ other, first & _MASK
        key, other = (key + _WEYL[0]) & _MASK, (other + _WEYL[1]) & _MASK
    return a, b, c, d


def uniform(seed: int, position: int) -> float:
    """
    Return the number of a position, in [0, 1).

    It has 52 bits, so that its product with any total stays below that total after rounding.
    """
    return (philox(seed, position)[0] >> 12) * 2.0**-52
