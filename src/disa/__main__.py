"""``python -m disa``, for launchers: ``accelerate launch -m disa run RECIPE.yaml``."""

import sys

from disa.cli.main import main

sys.exit(main())
