"""Makes `drawing.py` importable by the tests beside it, from whichever folder pytest is started."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
