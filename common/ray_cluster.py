"""A Ray cluster: reached at its address, and functions run on its machines, again where a machine is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from glscl.common.errors import GlsclError, StorageError, UsageError, first_line

DEATHS = 3  # of the process or machine that runs a call, after which the call is given up
AHEAD = 2  # calls under way for each core or GPU of the cluster


def ray_module() -> Any:
    """Ray. Raises UsageError where it is not installed."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError("`engine=ray` needs Ray, which is not installed", hint="pip install 'glscl[ray]'") from None
    return ray


def connect(address: str = "auto") -> Any:
    """Ray, connected to a cluster: "auto" is the one that this machine belongs to, "local" one of this machine alone.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
    """
    ray = ray_module()
    if not ray.is_initialized():
        try:
            ray.init(address=None if address == "local" else address, logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"There is no Ray cluster at `address={address}`: {first_line(error)}",
                hint="Start one with ray start, or use `address=local` for this machine alone",
            ) from error
    return ray


def cause_of(error: Any) -> Exception:
    """What code of ours raised on another machine."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, GlsclError) else error


class RayCluster:
    """Calls of plain functions on the machines of a cluster, each on one core, or on one GPU where there are any.

    Raises:
        UsageError: see `connect`.
    """

    def __init__(self, address: str = "auto") -> None:
        self._ray = connect(address)
        there = self._ray.cluster_resources()
        self.gpus, self.cores = int(there.get("GPU", 0)), max(1, int(there.get("CPU", 1)))

    def __repr__(self) -> str:
        return f"<RayCluster of {self.cores} cores, {self.gpus} GPUs>"

    def map(self, function: Callable[..., Any], calls: Iterable[Any], *shared: Any) -> Iterator[tuple[int, Any]]:
        """(number of the call, `function(call, *shared)`), in the order in which they are done; few are under way at once.

        Args:
            shared: what every call gets too, sent to each machine once.

        Raises:
            StorageError: a call was lost `DEATHS` + 1 times. Whatever the function raises.
        """
        ray = self._ray
        remote = ray.remote(function).options(
            num_cpus=0 if self.gpus else 1,
            num_gpus=1 if self.gpus else 0,
            max_retries=DEATHS,
            scheduling_strategy="SPREAD",
        )
        kept = [ray.put(each) for each in shared]
        left, running = enumerate(calls), {}
        try:
            while True:
                for number, call in itertools.islice(left, AHEAD * (self.gpus or self.cores) - len(running)):
                    running[remote.remote(call, *kept)] = number
                if not running:
                    return
                ready, _ = ray.wait([*running], num_returns=1)
                for ref in ready:
                    number = running.pop(ref)
                    try:
                        done = ray.get(ref)
                    except ray.exceptions.RayTaskError as error:
                        raise cause_of(error) from error
                    except ray.exceptions.RayError as error:
                        raise StorageError(
                            f"Part {number + 1} of the work was lost {DEATHS + 1} times with the process that did it: "
                            f"{first_line(error)}",
                            first="See the log of Ray; its memory may be too small",
                        ) from error
                    yield number, done
        finally:
            for ref in running:
                ray.cancel(ref, force=True)
