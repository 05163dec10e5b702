"""Trackers: progress callbacks that log to TensorBoard or Weights & Biases, in a folder."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from exhume.errors import InputError
from exhume.progress import Progress, ProgressCallback

# A tracker opens its log at the first event, so that a command that is refused leaves nothing behind.


@contextmanager
def tensorboard(folder: Path) -> Iterator[ProgressCallback]:
    """Logs every figure as the scalar STAGE/NAME over the steps, in event files; `tensorboard --logdir` shows them.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError:
        raise _missing("tensorboard") from None
    with ExitStack() as stack:
        writer = cache(lambda: stack.enter_context(SummaryWriter(str(folder))))

        def hear(event: Progress) -> None:
            for name, value in event.values.items():
                writer().add_scalar(f"{event.stage}/{name}", value, event.step)

        yield hear


@contextmanager
def wandb(folder: Path) -> Iterator[ProgressCallback]:
    """Logs every figure as STAGE/NAME, beside STAGE/step, in one run of the project exhume.

    Online only where WANDB_MODE says so, or where it is not set and an account is configured; else in files that
    `wandb sync` uploads.

    Raises:
        InputError: wandb is not installed.
    """
    try:
        import wandb as client  # noqa: PLC0415
    except ImportError:
        raise _missing("wandb") from None
    with ExitStack() as stack:

        @cache
        def run() -> client.Run:
            folder.mkdir(parents=True, exist_ok=True)
            mode: Any = os.environ.get("WANDB_MODE") or ("online" if client.login(prompt=False) else "offline")
            quiet = client.Settings(silent=True, console="off")
            return stack.enter_context(client.init(project="exhume", dir=str(folder), mode=mode, settings=quiet))

        def hear(event: Progress) -> None:
            figures = {f"{event.stage}/{name}": value for name, value in event.values.items()}
            run().log({**figures, f"{event.stage}/step": event.step})

        yield hear


Tracker = Callable[[Path], AbstractContextManager[ProgressCallback]]
TRACKERS: dict[str, Tracker] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
}


def _missing(name: str) -> InputError:
    return InputError(f"{name} is not installed; install exhume again with the extra [{name}].")
