"""The README of an exported folder: how to load it, and what the model takes."""

from typing import Any

from omnihuman_jax.interop.export_folder import Serving
from omnihuman_jax.models import mmdit


def readme(model: mmdit.MMDiTConfig, about: dict[str, Any], name: str, serving: Serving | None) -> str:
    """The folder's README: the three lines that load it, and what the model takes."""
    rows = [
        ("`segment_ids_BL`, `text_segment_ids_BS`", "int", "window of a token + 1, 0 for padding"),
        ("`positions_BL3`", "int", "indices (t, h, w) of a latent token; t is 0 on reference tokens"),
        ("`is_reference_BL`", "bool", "tokens of the reference image"),
        ("`motion_BG`", "bool", "windows whose first 2 latents are given clean"),
        ("`active_BG4`", "bool", "active conditions of a window: text, reference, audio, pose"),
        ("`text_BSE`", "float", f"token-level text embeddings, E = {model.text_width}"),
    ]
    if model.pooled_width:
        rows.append(("`pooled_BGE`", "float", f"pooled text embedding of a window, E = {model.pooled_width}"))
    if model.audio or model.pose:
        rows.append(("`frame_BL`", "int", "latent-frame slot of a video token, -1 on other tokens"))
    if model.audio:
        rows.append(("`audio_BTE`", "float", f"speech features at 25 fps, E = {model.audio.features}"))
        rows.append(
            ("`audio_index_BFA`", "int", f"rows of them for each latent frame, A = {model.audio.tokens}, -1 for none")
        )
    if model.pose:
        rows.append(
            ("`keypoints_BTJ3`", "float", f"x, y (in tokens of 16 pixels), confidence; J = {model.pose.keypoints}")
        )
        rows.append(
            ("`pose_index_BFP`", "int", f"rows of them for each latent frame, P = {model.pose.frames}, -1 for none")
        )
    table = "\n".join(f"| {row} | {dtype} | {meaning} |" for row, dtype, meaning in rows)
    return f"""# {name}

OmniHuman, step {about["step"]} of run `{about["run"]}`, {about["weights"]} weights in {about["dtype"]}, by
`omnihuman export`. Needs `torch` and `safetensors`; no JAX. In this folder (or with it on `PYTHONPATH`):

```python
from modeling_omnihuman import OmniHumanForVideo
model = OmniHumanForVideo.from_pretrained(".")
velocity = model(tokens, t, batch)
```

`tokens` [B, L, {model.patch_channels}] are latents in patches of 2 x 2, `t` [B, G] the diffusion time of each window in
[0, 1], `velocity` the direction from data to noise: z_t = (1 - t) z_0 + t noise, so a step from t to s < t is
`tokens + (s - t) * velocity`, on the tokens that are not given clean. `batch` is a dict of tensors; a sequence packs up
to G windows (clips) of any size:

| array | dtype | meaning |
|---|---|---|
{table}

The docstring of `OmniHumanForVideo.forward` has the details. `torch.compile(model)` works; attention is PyTorch's
`scaled_dot_product_attention`. `sampling_omnihuman.py` takes noise to latents.
{pipeline_section(model) if serving else NO_PIPELINE}"""


NO_PIPELINE = """
`pipeline_omnihuman.py` (from files to a video) does not run from this export: the run had no dataset.json, so nothing
says which codec and encoders belong to the model. Export a run that was trained on a dataset.
"""


def pipeline_section(model: mmdit.MMDiTConfig) -> str:
    """The README's part about the pipeline, with the inputs that this model has."""
    driven = " --audio voice.wav" * bool(model.audio) + " --pose pose.npz" * bool(model.pose and not model.audio)
    return f"""
## From files to a video

```
pip install torch safetensors numpy av soundfile pillow pillow-heif transformers tokenizers diffusers
python pipeline_omnihuman.py --image face.png{driven} --text "A woman speaks." --out talking.mp4
```

The same seed gives what `omnihuman generate` gives. The networks beside the model are read from the folders that
config.json names (`serving`); on another machine, name them: `--speech-encoder DIR --text-encoder DIR --codec DIR`
(their weights are compared with those that the model was trained with). `--help` lists the options; in Python it is
`OmniHumanPipeline.from_pretrained(DIR)`.
"""
