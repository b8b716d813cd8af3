"""Logs: what one process of a submitted job prints.

omnihuman logs launch/examples/v5p.yaml --target jobset --rank 3 --follow
"""

import sys
from collections.abc import Sequence

from launch import jobs


def main(argv: Sequence[str]) -> int:
    """`omnihuman logs`."""
    parser = jobs.parser("logs", __doc__)
    parser.add_argument("--rank", type=int, default=0, metavar="I", help="of which process (default 0)")
    parser.add_argument("--follow", action="store_true", help="go on as it grows")
    parser.add_argument("--lines", type=int, default=200, metavar="N", help="of the end (default 200)")
    job, options = jobs.parse(parser, argv)
    if options.rank < 0:
        raise ValueError(f"--rank {options.rank}: 0 or more")
    return job.target.logs(job.spec, rank=options.rank, follow=options.follow, lines=options.lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
