"""`python -m bench.sim`: see `bench.sim.report`."""

import sys

from bench.sim.report import main

sys.exit(main())
