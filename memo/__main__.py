"""`python -m memo`."""

import sys

from memo.cli import main

sys.exit(main())
