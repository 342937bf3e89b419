"""Lets the tests of backbones import what they share (`stand_ins`)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
