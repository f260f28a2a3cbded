"""``python -m continual_metaopt``."""

import sys

from continual_metaopt.command import main

if __name__ == "__main__":
    sys.exit(main())
