"""Parameters from and to other notations.

- `jaxrnn.convert.textbook`: the dictionaries of `jaxrnn.textbook`
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrnn.convert import textbook

__all__ = ["textbook"]


def __getattr__(name: str) -> Any:
    # imported when it is asked for, because it imports the notation that it converts
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
