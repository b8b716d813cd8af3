"""`omnihuman train` with a fault at a step of this process: what a test cannot cause from outside.

    python -m tests.training.faulty KIND STEP -- ARGUMENTS OF omnihuman

KIND: `raise` (an exception), `sleep` (Python hangs), `user_error`, each when this process places batch STEP;
`no_storage`: shard STEP of the dataset goes away once the dataset is open; `blind`: from batch STEP on this process
does not find the folder of the checkpoints, twice; `unfinished`: the save after batch STEP fails here once it is
written, the next takes its time; `corrupt`: what is computed differs by a bit at its STEP-th repetition.
"""

import itertools
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    kind, at, _, *arguments = sys.argv[1:]
    from omnihuman_jax import cli

    # The devices are chosen before jax is imported.
    if arguments[0] == "--simulate-devices":
        cli.simulate_devices(int(arguments[1]))
        arguments = arguments[2:]
    from omnihuman_jax.training import placement

    if kind == "no_storage":
        from omnihuman_jax.data import generations
        from omnihuman_jax.data.record_source import RecordSource

        init = RecordSource.__init__

        lost = int(at)

        def gone(self, directory, **kwargs):
            init(self, directory, **kwargs)
            shard = Path(generations.split_name(str(directory))[0]) / self._shards[lost]
            shard.rename(shard.with_name(shard.name + ".away"))

        RecordSource.__init__ = gone
        at = 0

    if kind == "corrupt":
        import jax.numpy as jnp

        from omnihuman_jax.training import numerics

        differing, repetitions, when = numerics.RepeatedStep.differing, itertools.count(1), int(at)

        def corrupt(self, state, batch, controls):
            run, calls = self._run, itertools.count()
            if next(repetitions) == when:
                self._run = lambda *args: run(*args) ^ jnp.uint32(next(calls))
            return differing(self, state, batch, controls)

        numerics.RepeatedStep.differing = corrupt
        at = 0

    place_batch, calls = placement.place_batch, itertools.count(1)

    def faulty(*args, **kwargs):
        if next(calls) == int(at):
            if kind == "blind":
                from omnihuman_jax.runtime import storage

                verify, times = storage.verify, itertools.count()

                def gone(folder, identity):
                    if next(times) < 2:
                        raise storage.Gone(f"{folder} is not there any more (planted)")
                    verify(folder, identity)

                storage.verify = gone
                return place_batch(*args, **kwargs)
            if kind == "unfinished":
                from omnihuman_jax.runtime import storage

                verify, looks = storage.verify, itertools.count()

                def looked(folder, identity):
                    # Of each save: one look before, one before the manifest.
                    if (look := next(looks)) == 1:
                        raise OSError(5, "Input/output error (planted)")
                    time.sleep(1.0 if look == 3 else 0.0)
                    verify(folder, identity)

                storage.verify = looked
                return place_batch(*args, **kwargs)
            if kind == "sleep":
                time.sleep(600)
            raise (ValueError if kind == "user_error" else RuntimeError)(f"planted at batch {at}")
        return place_batch(*args, **kwargs)

    placement.place_batch = faulty
    sys.exit(cli.main(arguments))
