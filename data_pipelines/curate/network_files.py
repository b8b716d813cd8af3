"""Which weights an installed package's networks have: part of the keys of what they found."""

import functools
import importlib.util
from pathlib import Path

from omnihuman_jax.runtime.files import file_sha256

# Of MediaPipe, by the solutions that `landmarks.py` opens; of hama, the phone recogniser of `lipsync.py`.
NETWORKS = {
    "mediapipe": tuple(
        f"modules/{module}/*.{suffix}"
        for module in (
            "face_detection", "face_landmark", "hand_landmark", "palm_detection", "pose_detection", "pose_landmark",
        )
        for suffix in ("tflite", "binarypb")
    ),
    "hama": ("assets/asr_*.hama",),
}  # fmt: skip


@functools.cache
def network_sha256() -> dict[str, str]:
    """PACKAGE/FILE -> sha256 of its bytes; nothing of a package that is not installed. Read once a process."""
    found = {}
    for package, patterns in NETWORKS.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(file for pattern in patterns for file in Path(place).glob(pattern)):
                found[f"{package}/{file.relative_to(place).as_posix()}"] = file_sha256(file)
    return found
