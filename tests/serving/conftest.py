"""The files of an exported folder import one another as they lie there, side by side: so the tests of this room import
them, from where they are kept.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "omnihuman_jax" / "serving"))
