"""An extraction of files of a few bytes, for the tests of extraction."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from made_extraction import Extractor, MadeBackbone, MadePool

from glscl.extract import pipeline


@pytest.fixture
def extractor(monkeypatch) -> Extractor:
    """Extracts what files of a few bytes are, within milliseconds, and counts."""
    made = Extractor(MadeBackbone(), MadePool())
    monkeypatch.setattr(pipeline, "DecodePool", made.pool)
    return made
