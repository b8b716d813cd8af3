"""Cancel: ends a submitted job. Its processes get SIGTERM and the grace period, so they save first where the target
allows it.

omnihuman cancel launch/examples/v5p.yaml --target jobset
"""

import sys
from collections.abc import Sequence

from launch import jobs


def main(argv: Sequence[str]) -> int:
    """`omnihuman cancel`."""
    job, _ = jobs.parse(jobs.parser("cancel", __doc__), argv)
    return job.target.cancel(job.spec)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
