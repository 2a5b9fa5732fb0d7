"""`python -m geom` is `geom`."""

import sys

from geom.cli import main

sys.exit(main())
