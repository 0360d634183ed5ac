"""Loops that numba compiles, kept on disk where that is possible. Import it inside functions: numba takes a second.

numba's cache does not notice when a compiled function calls one of another file that changed: such calls are not made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiled at the first call, outside Python's lock; where no folder can be written, compiled in every process."""
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder for its cache
        return numba.njit(nogil=True, **options)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a small function that is copied into its callers."""
    return compiled(function, inline="always")
