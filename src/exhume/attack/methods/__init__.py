"""The methods of reconstruction. A method is one file: a frozen dataclass of its own settings that begins a search."""

from exhume.attack.methods.exhume import Exhume as Exhume
from exhume.attack.methods.reference import Reference as Reference
from exhume.attack.search import Method

METHODS: dict[str, type[Method]] = {"exhume": Exhume, "reference": Reference}


def name_of(method: Method) -> str:
    """The row of METHODS that a method is of."""
    return next(name for name, kind in METHODS.items() if type(method) is kind)
