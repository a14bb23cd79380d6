"""Constants of a network that depend on sizes alone, computed once per device: positions of cells, anchors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def cached_constant(maxsize: int) -> Callable[[Function], Function]:
    """Decorates a function of sizes, dtype and device: results are kept for recent arguments, and nobody changes them.

    They are computed without gradients and outside inference mode, so that training can use what an evaluation made.
    Code that is being compiled or exported has no cache: the computation becomes part of it.

    Args:
        maxsize: number of results that are kept; few where one is tens of megabytes for a large image.
    """

    def decorate(function: Function) -> Function:
        @functools.lru_cache(maxsize=maxsize)
        def cached(*arguments: Any, **keywords: Any) -> Any:
            with torch.inference_mode(mode=False), torch.no_grad():
                return function(*arguments, **keywords)

        @functools.wraps(function)
        def compute(*arguments: Any, **keywords: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(*arguments, **keywords)
            constant = cached(*arguments, **keywords)
            for constants in _used:
                constants.append(constant)
            return constant

        return cast("Function", compute)

    return decorate


_used: list[list[Any]] = []


@contextlib.contextmanager
def used_constants() -> Iterator[list[Any]]:
    """Lists the constants that are used in the context; they live as long as the list."""
    constants: list[Any] = []
    _used.append(constants)
    try:
        yield constants
    finally:
        _used[:] = [others for others in _used if others is not constants]
