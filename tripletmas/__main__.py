"""`python -m tripletmas`."""

import sys

from tripletmas.cli import main

sys.exit(main())
