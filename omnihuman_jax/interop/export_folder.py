"""What an exported folder carries besides weights: the PyTorch modules, and what their pipeline has to know of the
run.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from safetensors.numpy import save

from omnihuman_jax.codecs import dct as dct_codec
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from omnihuman_jax.data.window_sizes import WindowSizes
from omnihuman_jax.diffusion.flow_matching import FlowMatchingConfig
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.runtime import locations
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.typing import MOTION_FRAMES, TEMPORAL_STRIDE

MODULES = tuple(f"{name}_omnihuman.py" for name in (
    "modeling", "sampling", "guidance", "windows", "pictures", "batch", "folders", "encoders", "text_encoders", "poses",
    "streams", "colours", "frames", "footage", "images", "sound", "media", "pipeline",
))  # fmt: skip
"""Files of `omnihuman_jax.serving`: copied as they are, so none of them imports this package."""

EMPTY_PROMPT_FILE = "empty_prompt.safetensors"
DCT_FILE = "codec.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """The data that a run was trained on, as far as sampling needs it. sizes: of the windows of all its data sets; None
    where they are elsewhere.
    """

    spec: DatasetSpec
    sampling: SamplingConfig
    flow: FlowMatchingConfig
    sizes: WindowSizes | None

    @classmethod
    def of_run(
        cls, run: Location, datasets: Sequence[WeightedDataset], sampling: SamplingConfig, flow: FlowMatchingConfig
    ) -> "Serving | None":
        """Of a run directory, which keeps its data's spec; None for one without (nothing but the model is served
        then).
        """
        if locations.is_remote(run) or not (run / "dataset.json").is_file():
            return None
        return cls(spec=DatasetSpec.load(run), sampling=sampling, flow=flow, sizes=WindowSizes.of(datasets))

    def to_json(self) -> dict[str, Any]:
        """The part "serving" of config.json: the fields of `ServingConfig` in pipeline_omnihuman.py."""
        spec, sizes = self.spec, self.sizes
        frames, area, usual = self.sampling.segment_frames, 0, (0, 0)
        if sizes is not None:
            frames = frames or max(sizes.frames, MOTION_FRAMES + TEMPORAL_STRIDE)
            area, usual = sizes.area, sizes.usual

        def digests(role: str) -> dict[str, str]:
            at = f"{role}/"
            return {
                name.removeprefix(at): digest for name, digest in spec.encoder_sha256.items() if name.startswith(at)
            }

        return {
            "codec": spec.codec,
            "codec_sha256": digests("codec"),
            "codec_options": dict(spec.codec_options),
            "text_encoder": spec.text_encoder,
            "text_sha256": digests("text_encoder"),
            "max_text_tokens": spec.max_text_tokens,
            "speech_encoder": spec.speech_encoder,
            "speech_sha256": digests("speech_encoder"),
            "speech_layers": list(spec.speech_layers),
            "margin": spec.margin,
            "num_steps": self.sampling.num_steps,
            "solver": self.sampling.solver,
            "segment_frames": frames,
            "area": area,
            "size": list(usual),
            "flow": dataclasses.asdict(self.flow),
            "guidance": dataclasses.asdict(self.sampling.guidance),
        }

    def write(self, folder: Location, metadata: Mapping[str, str] | None = None) -> None:
        """The empty prompt, and the tensors of a codec that has no folder of its own; `metadata` of their files."""
        empty = {"text_SE": self.spec.empty_text_SE, "pooled_E": self.spec.empty_pooled_E}
        stated = dict(metadata or {})
        tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in empty.items()}
        (folder / EMPTY_PROMPT_FILE).write_bytes(save(tensors, stated))
        if self.spec.codec == dct_codec.DctCodec.name:
            names = ("first_in", "group_in", "first_out", "group_out")
            matrices = map(np.ascontiguousarray, dct_codec.matrices())
            (folder / DCT_FILE).write_bytes(save(dict(zip(names, matrices, strict=True)), stated))


def copy_modules(folder: Location) -> None:
    """Puts the PyTorch modules into an exported folder."""
    for name in MODULES:
        (folder / name).write_bytes((resources.files("omnihuman_jax.serving") / name).read_bytes())
