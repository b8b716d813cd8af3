"""Logs: what one process of a submitted job prints.

omnihuman logs launch/examples/v5p.yaml --target jobset --rank 3 --follow
"""

import sys
from collections.abc import Sequence

from launch import jobs


def main(argv: Sequence[str]) -> int:
    """`omnihuman logs`."""
    parser = jobs.parser("logs", __doc__)
    parser.add_argument("--rank", type=int, default=0, metavar="I", help="rank of the process (default 0)")
    parser.add_argument("--follow", action="store_true", help="keep printing new lines")
    parser.add_argument(
        "--lines", type=int, default=200, metavar="N", help="number of lines from the end (default 200)"
    )
    job, options = jobs.parse(parser, argv)
    if options.rank < 0:
        raise ValueError(f"--rank must be 0 or more, not {options.rank}")
    return job.target.logs(job.spec, rank=options.rank, follow=options.follow, lines=options.lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
