"""Lets the tests of the cache import what they share (`made_library`)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
