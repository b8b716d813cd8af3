"""Files damaged at random, through everything that reads files: a picture, a reason by name, but never a crash, a hang
or a flood of memory.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.serving import footage_maker as maker
from tests.serving.footage_maker import FORMATS

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = 2000
# Of one mutation through scan, decode and generate's inputs, in a process of its own with a hundred others.
MEMORY_BYTES = 3 << 30
SECONDS = 60

READER = textwrap.dedent(
    """
    import json, os, resource, signal, sys
    from pathlib import Path
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    from data_pipelines.curate import decode, shots
    from omnihuman_jax.serving import media_omnihuman as media
    from omnihuman_jax.serving.pictures_omnihuman import lay_picture

    def scan(path):
        video = decode.inspect(path, "")
        watched = shots.watch(path, shots.ShotConfig(), 20.0)
        json.dumps(decode.with_properties(path, video, watched.looks).properties)

    def clip(path):
        for _ in decode.clip_frames(path, 5, 20): pass
        decode.clip_audio(path, 5, 20)

    readers = {
        "scan": scan,
        "clip": clip,
        "image": lambda path: lay_picture(lambda size: media.read_image(path, size), (64, 48)),
        "audio": lambda path: media.read_audio(path, required=True),
    }
    for line in sys.stdin:
        path = Path(line.strip())
        said = {}
        for name, read in readers.items():
            print(json.dumps([path.name, name, None]), flush=True)
            signal.alarm(int(sys.argv[3]))
            try:
                read(path)
                said[name] = "read"
            except (media.MediaError, FileNotFoundError) as error:
                assert "\\n" not in str(error) and path.name in str(error), error
                said[name] = "refused"
            signal.alarm(0)
        print(json.dumps([path.name, "done", said]), flush=True)
    """
)


def originals(folder: Path) -> list[Path]:
    """Ten small real files of as many kinds."""
    scene, sound = maker.scene(0.6), maker.clicks(0.6, 48_000)
    kinds = ("mp4 h264 aac", "mkv h264 opus", "webm vp8 opus", "ts h264 aac", "mpg mpeg2 mp2", "mov prores pcm")
    paths = [
        maker.write(folder / f"{i}.{FORMATS[name].suffix}", FORMATS[name], scene, sound) for i, name in enumerate(kinds)
    ]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    for suffix in ("jpg", "png"):
        paths.append(folder / f"p.{suffix}")
        picture.save(paths[-1])
    for suffix in ("wav", "mp3"):
        paths.append(folder / f"s.{suffix}")
        soundfile.write(paths[-1], maker.clicks(0.6, 16_000), 16_000)
    return paths


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Some bytes changed, taken out, doubled, or the end cut off; headers more often than the rest."""
    damaged = bytearray(data)
    for _ in range(random.integers(1, 6)):
        reach = len(damaged) if random.random() < 0.5 else min(len(damaged), 600)
        at = int(random.integers(0, max(1, reach)))
        length = int(random.integers(1, 9))
        match random.integers(0, 5):
            case 0:
                damaged[at : at + length] = random.bytes(length)
            case 1:
                damaged[at : at + 1] = bytes([int(random.choice([0, 1, 127, 128, 255]))])
            case 2:
                del damaged[at : at + length]
            case 3:
                damaged[at:at] = damaged[at : at + 64]
            case 4 if random.random() < 0.3:
                del damaged[at + 16 :]
    return bytes(damaged)


def survivors(paths: list[Path]) -> dict[str, int]:
    """Reads the files in one process; AssertionError with the file and the reader if that dies, hangs or overflows."""
    run = subprocess.run(
        [sys.executable, "-c", READER, "-", str(MEMORY_BYTES), str(SECONDS)],
        input="\n".join(map(str, paths)),
        text=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    done = [said for _, stage, said in lines if stage == "done"]
    assert run.returncode == 0 and len(done) == len(paths), f"{lines[-1:]}: rc {run.returncode}\n{run.stderr[-2000:]}"
    outcomes = [outcome for said in done for outcome in said.values()]
    return {outcome: outcomes.count(outcome) for outcome in ("read", "refused")}


def run_mutations(folder: Path, count: int, seed: int) -> dict[str, int]:
    random = np.random.default_rng(seed)
    sources = [(path, path.read_bytes()) for path in originals(folder)]
    total = {"read": 0, "refused": 0}
    for begin in range(0, count, 100):
        paths = []
        for number in range(begin, min(begin + 100, count)):
            path, data = sources[number % len(sources)]
            paths.append(folder / f"m{number}{path.suffix}")
            paths[-1].write_bytes(mutated(data, random))
        for outcome, number in survivors(paths).items():
            total[outcome] += number
        for path in paths:
            path.unlink()
    return total


def test_a_few_damaged_files(tmp_path: Path) -> None:
    outcome = run_mutations(tmp_path, 30, seed=1)
    assert outcome["read"] > 0 and outcome["refused"] > 0


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path: Path) -> None:
    outcome = run_mutations(tmp_path, MUTATIONS, seed=0)
    print(outcome)
    assert outcome["read"] > 100 and outcome["refused"] > 100
