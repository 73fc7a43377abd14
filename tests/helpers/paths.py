"""Folders that tests read from."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
HELPERS = TESTS / "helpers"
GOLDEN = TESTS / "golden"
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared"  # optional real data beside the checkout
