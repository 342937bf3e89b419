"""The formats of a cache as parameters of tests."""

import pytest

BOTH = ("zarr", "hdf5")
# for what happens above the formats: one that is written fast is enough for `make test`, which asks for both where they differ
EITHER = ("hdf5", pytest.param("zarr", marks=pytest.mark.exhaustive))
