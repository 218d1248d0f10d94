"""``python -m fuxictr_tf4ctr`` is the command line."""

import sys

from fuxictr_tf4ctr.cli import main

sys.exit(main())
