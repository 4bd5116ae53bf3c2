"""Names that come from files, as messages show them."""

from collections.abc import Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    r"""Write what is no letter, digit or sign, such as a control character, as Python escapes it.

    Files may have anything in their names and keys, also what clears a terminal.

    Examples
    --------
    >>> print(printable("Größe \x1b[2J \ud800"))
    Größe \x1b[2J \ud800
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


@contextmanager
def printable_errors() -> Iterator[None]:
    """Make the messages of errors printable, those of the libraries that read a file too."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:
        # Those of the system keep a number and a name apart, and show the name as Python would.
        if getattr(error, "errno", None) is None:
            error.args = tuple(printable(a) if isinstance(a, str) else a for a in error.args)
        raise
