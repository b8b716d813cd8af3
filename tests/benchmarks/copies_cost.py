"""What it costs to find copies among many clips, and which share of them is found.

    python -m tests.benchmarks.copies_cost --clips 1000000 --flipped 0.01

Hashes are random; a twentieth of the clips are copies of others, with a share of their bits flipped.
"""

import argparse
import tempfile
import time
import tracemalloc

import numpy as np

from data_pipelines.curate.near_copies import KeptWords, find_copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--flipped", type=float, default=0.01)
    options = parser.parse_args()
    rng, count = np.random.default_rng(0), options.clips
    words_NW, seconds_N = rng.integers(0, 1 << 64, (count, 3), np.uint64), rng.integers(25, 500, count) / 25
    copies = np.arange(count - count // 20, count)
    originals = rng.permutation(count // 2)[: copies.size]
    flips = np.packbits(rng.random((copies.size, 3, 64)) < options.flipped, axis=-1).view(">u8")[..., 0]
    words_NW[copies], seconds_N[copies] = words_NW[originals] ^ flips.astype(np.uint64), seconds_N[originals]
    with tempfile.TemporaryFile() as file:
        kept = KeptWords(file)
        kept.add(words_NW)
        del words_NW
        tracemalloc.start()
        begin = time.process_time()
        found = find_copies(kept, lambda rows: seconds_N[rows], np.ones(count, bool))
        took, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    right = {*map(tuple, found.tolist())} & {*zip(originals.tolist(), copies.tolist(), strict=True)}
    share = len(right) / copies.size
    print(f"{count:,} clips: {took:.1f} CPU s, {peak / 2**20:.0f} MiB; the hashes are in a file")
    print(f"of {copies.size:,} copies {share:.1%} found, and {len(found) - len(right)} others")


if __name__ == "__main__":
    main()
