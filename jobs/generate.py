"""`aigc-ray generate` as a job of a cluster.

ray job submit --working-dir . -- python jobs/generate.py MODEL --n N --out URI
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # aigc_ray lies beside this folder

from aigc_ray import cli, cluster  # noqa: E402

if __name__ == "__main__":
    cluster.refuse_relative_home()
    sys.exit(cli.main(["generate", *sys.argv[1:]]))
