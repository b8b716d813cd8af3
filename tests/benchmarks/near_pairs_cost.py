"""What it costs to find clips that are alike among the signatures of many, and how many of the planted are found.

    python -m tests.benchmarks.near_pairs_cost --clips 15000000 --similarity 0.97

One clip in twenty is another's copy, its signature that of a vector at a cosine of `similarity` + a third of what is
left to 1, as chance has it. The vectors themselves are not made: reading them depends on the disk.
"""

import argparse
import math
import resource
import time

import numpy as np

from data_pipelines.curate import duplicates
from data_pipelines.curate.embeddings import SIGNATURE_BITS

_BLOCK = 1 << 18


def made(clips: int, cosine: float) -> tuple[np.ndarray, int]:
    """(signatures uint64 [n, 4], how many of the last are copies of the first)."""
    rng = np.random.default_rng(0)
    signatures = np.empty((clips, 4), np.uint64)
    for begin in range(0, clips, _BLOCK):
        signatures[begin : begin + _BLOCK] = rng.integers(
            0, 1 << 64, (len(signatures[begin : begin + _BLOCK]), 4), np.uint64
        )
    copies = clips // 20
    for begin in range(0, copies, _BLOCK):
        originals = signatures[begin : min(begin + _BLOCK, copies)]
        differ = rng.random((len(originals), SIGNATURE_BITS), np.float32) < math.acos(cosine) / math.pi
        at = clips - copies + begin
        signatures[at : at + len(originals)] = originals ^ np.packbits(differ, axis=1).view(np.uint64)
    return signatures, copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--similarity", type=float, default=0.97)
    options = parser.parse_args()
    signatures, copies = made(options.clips, options.similarity + (1 - options.similarity) / 3)
    began = time.process_time()
    pairs = duplicates.candidates(signatures, options.similarity, lambda one, other: one != other)
    seconds = time.process_time() - began
    found = int((pairs[:, 1] - pairs[:, 0] == options.clips - copies).sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{options.clips} clips: {seconds:.0f} CPU s, {peak:.0f} MiB at most; {found} of {copies} copies found, ",
        end="",
    )
    print(f"{len(pairs) - found} other pairs to compare")


if __name__ == "__main__":
    main()
