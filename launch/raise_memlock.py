"""`python -m launch.raise_memlock ARGUMENTS`: takes away the limit on pinned memory, then becomes `python ARGUMENTS`.

The TPU runtime pins its transfer buffers. Instead of a privileged container, the pod has the capability SYS_RESOURCE
and does this; the process stays number 1 of its container, so SIGTERM reaches the trainer.
"""

import os
import resource
import sys


def main() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError) as error:
        # Enough may be allowed already; the TPU runtime says so itself if it is not.
        print(
            f"launch.raise_memlock: limit on pinned memory stays {resource.getrlimit(resource.RLIMIT_MEMLOCK)}:"
            f" {error}",
            flush=True,
        )
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
