"""Parameters from and to other notations.

- `from_torch`, `to_torch`: the ``state_dict`` of PyTorch's recurrent modules, as plain arrays
- `jaxrnn.convert.textbook`: the dictionaries of `jaxrnn.textbook`
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxrnn.convert.torch import from_torch, to_torch

if TYPE_CHECKING:
    from jaxrnn.convert import textbook

__all__ = ["from_torch", "textbook", "to_torch"]


def __getattr__(name: str) -> Any:
    # imported when it is asked for, because it imports the notation that it converts
    if name == "textbook":
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
