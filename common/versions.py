"""Versions of everything that can change a number, for stores, checkpoints and results."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch", "open_clip_torch", "numpy", "decord", "av", "h5py", "zarr", "accelerate")


def versions() -> dict[str, str]:
    """Package name → version, with Python's and our own."""
    from glscl import __version__

    found = {"glscl": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
