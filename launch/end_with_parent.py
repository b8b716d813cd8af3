"""`python launch/end_with_parent.py PARENT ARGV...`: becomes ARGV, and gets SIGTERM when the process PARENT is gone.

So that no rank outlives a launcher that was killed. A program of its own: code between fork and exec is not safe in a
launcher with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(f"launcher {sys.argv[1]} is gone already")
    os.execv(sys.argv[2], sys.argv[2:])
