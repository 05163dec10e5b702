"""What all workers have in common: items go in, results come out in the order in which they end."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from exhume.progress import ProgressCallback, ProgressDisplay

Item = TypeVar("Item")
Result = TypeVar("Result")
Bulk = TypeVar("Bulk")

Work = Callable[[Item, ProgressCallback], tuple[Result, Bulk]]
"""What is done with one item: it gives a small result, which always travels, and a bulk, which travels if it is asked
for. Work, item, result and bulk must be picklable. The same item gives the same result."""


@dataclass(frozen=True, kw_only=True)
class Done(Generic[Item, Result, Bulk]):
    """An item whose work has ended, its result, and how to get its bulk: before the next item is taken."""

    item: Item
    result: Result
    fetch: Callable[[], Bulk]


@runtime_checkable
class Workers(Protocol):
    """Where work is done.

    name: its row of WORKERS; same_disk: whether the workers see the files that this process sees.
    """

    name: ClassVar[str]
    same_disk: ClassVar[bool]

    def check(self, device: str) -> None:
        """Raises `InputError` if it is known beforehand that no work can be done on such a device."""

    def map(
        self,
        work: Callable[[Any, ProgressCallback], tuple[Any, Any]],
        items: Iterable[Any],
        *,
        count: int,
        device: str,
        display: ProgressDisplay,
    ) -> Iterator[Done[Any, Any, Any]]:
        """Does the work, `count` items at a time, and yields each once, as soon as it has ended.

        An item is taken only when a place is free and all that has ended was yielded, so that items may depend on the
        results before them. Work whose worker has died is done again where the row can; else it is an error.

        Args:
            device: what each item needs: auto, cpu or cuda.
            display: opened anew for each item, where its steps can be shown.

        Raises:
            InputError: a worker died and its work cannot be done again, or the work itself raised it.
        """
        ...
