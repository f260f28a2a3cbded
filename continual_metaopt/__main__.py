"""``python -m continual_metaopt``."""

import sys

from continual_metaopt.commands.entry import main

if __name__ == "__main__":
    sys.exit(main())
