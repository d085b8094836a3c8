"""The releaser process with shorter patience, so that a test need not wait for it."""

import os
import sys
from pathlib import Path

from pipeline import release

release._BACKOFF_S = (0.2, 1.0)
release._WATCH_S = 0.5
release._ATTEMPT_S = float(os.environ.get("HASTY_ATTEMPT_S", release._ATTEMPT_S))

if __name__ == "__main__":
    release.main(Path(sys.argv[1]), int(sys.argv[2]))
