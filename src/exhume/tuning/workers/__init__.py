"""Where many pieces of work are done: in processes of this machine, or on a Ray cluster."""

from exhume.tuning.workers.processes import Processes
from exhume.tuning.workers.protocol import Workers
from exhume.tuning.workers.ray_cluster import RayCluster

WORKERS: dict[str, type[Processes] | type[RayCluster]] = {kind.name: kind for kind in (Processes, RayCluster)}
"""The kinds of workers by name."""


def choose_workers(ray: str | None) -> Workers:
    """The workers that a command asks for: the Ray cluster at an address, or processes of this machine."""
    return Processes() if ray is None else RayCluster(address=ray)
