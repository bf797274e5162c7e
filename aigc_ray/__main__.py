"""`python -m aigc_ray` is `aigc-ray`."""

import sys

from aigc_ray.cli import main

sys.exit(main())
