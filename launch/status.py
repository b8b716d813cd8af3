"""Status: what a submitted job does now, as its cluster says it.

omnihuman status launch/examples/v5p.yaml --target jobset
"""

import sys
from collections.abc import Sequence

from launch import jobs


def main(argv: Sequence[str]) -> int:
    """`omnihuman status`."""
    job, _ = jobs.parse(jobs.parser("status", __doc__), argv)
    return job.target.status(job.spec)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
