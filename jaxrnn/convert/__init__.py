"""Parameters from and to other notations.

- `jaxrnn.convert.textbook`: the dictionaries of `jaxrnn.textbook`
"""

from jaxrnn.convert import textbook

__all__ = ["textbook"]
