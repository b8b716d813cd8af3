"""`omnihuman train` with a fault at a step of this process: what a test cannot cause from outside.

    python -m tests.training.faulty KIND STEP -- ARGUMENTS OF omnihuman

KIND: `raise` (an exception), `sleep` (Python hangs), `user_error`; STEP counts the batches that this process has placed.
"""

import itertools
import sys
import time

if __name__ == "__main__":
    kind, at, _, *arguments = sys.argv[1:]
    from omnihuman_jax import cli

    # The devices are chosen before jax is imported.
    if arguments[0] == "--simulate-devices":
        cli.simulate_devices(int(arguments[1]))
        arguments = arguments[2:]
    from omnihuman_jax.training import placement

    place_batch, calls = placement.place_batch, itertools.count(1)

    def faulty(*args, **kwargs):
        if next(calls) == int(at):
            if kind == "sleep":
                time.sleep(600)
            raise (ValueError if kind == "user_error" else RuntimeError)(f"planted at batch {at}")
        return place_batch(*args, **kwargs)

    placement.place_batch = faulty
    sys.exit(cli.main(arguments))
