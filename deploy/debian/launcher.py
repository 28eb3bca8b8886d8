#!/usr/bin/python3 -IS
"""Starts the agent with what its package brought along, and nothing else of this machine's Python."""

import os
import sys
from pathlib import Path

LIB = str(Path(__file__).resolve().parent.parent / "lib" / "variant-agent")
sys.path.insert(0, LIB)
os.environ["PYTHONPATH"] = LIB  # of the agent's own processes; hooks get none of it

from agent.__main__ import main  # noqa: E402

sys.exit(main())
