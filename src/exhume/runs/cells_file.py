"""A file of cells: Python with a function `cells()` that returns the cells of a study.

from functools import partial
from exhume import Exhume, NetworkConfig
from exhume.runs.cells import Cell, Recipe, run_cell

def cells():
    recipes = {width: Recipe(problem="faces", network=NetworkConfig(widths=(width,))) for width in (100, 1000)}
    return [Cell(setting={"width": width}, work=partial(run_cell, recipe=of)) for width, of in recipes.items()]
"""

import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from exhume.errors import InputError
from exhume.progress import ProgressCallback
from exhume.runs.cells import Cell
from exhume.runs.tables import Row

MODULE = "exhume_cells"
"""What a file of cells is called while it runs; where a dataclass in it looks its own module up."""


def load_cells(path: Path) -> list[Cell]:
    """The cells of a file. Their work carries the file's text, so that it can be done where the file is not.

    Raises:
        InputError: there is no such file, it cannot be run, or it gives no cells that tell themselves apart.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} cannot be read: it is no file.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    cells = _cells_in(text, path.name)
    twice = [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]
    if twice:
        raise InputError(f"{path} gives two cells the name {twice[0]}; their settings must differ.")
    return [
        Cell(setting=cell.setting, work=partial(_work_in, text=text, file=path.name, index=index))
        for index, cell in enumerate(cells)
    ]


def _cells_in(text: str, file: str) -> Sequence[Cell]:
    module = sys.modules[MODULE] = ModuleType(MODULE)
    try:
        exec(compile(text, file, "exec"), vars(module))  # noqa: S102 the user's own file, as a problem is
        cells = list(module.cells())
    except Exception as error:
        raise InputError(f"{file} cannot be run: {type(error).__name__}: {error}.") from error
    if not cells or not all(isinstance(cell, Cell) for cell in cells):
        raise InputError(f"{file} needs a function cells() that returns a list of Cell.")
    return cells


def _work_in(
    folder: Path, /, *, text: str, file: str, index: int, seed: int, device: str, progress_callback: ProgressCallback
) -> Row:
    cell = _cells_in(text, file)[index]
    return cell.work(folder, seed=seed, device=device, progress_callback=progress_callback)
