"""`python -m tripletmas`."""

import sys

from tripletmas.cli.main import main

sys.exit(main())
