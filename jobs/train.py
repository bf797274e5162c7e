"""`aigc-ray train` as a job of a cluster.

ray job submit --working-dir . -- python jobs/train.py TASK --data URI
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # aigc_ray lies beside this folder

from aigc_ray import cli, cluster  # noqa: E402

if __name__ == "__main__":
    cluster.refuse_relative_home()
    sys.exit(cli.main(["train", *sys.argv[1:]]))
