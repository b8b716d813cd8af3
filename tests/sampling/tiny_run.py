"""A run as the other commands leave it, tiny: videos' worth of windows, encoders' folders, and a checkpoint of random
weights.

Everything is written through the real writers and read back by the commands under test.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from omnihuman_jax import config as experiment
from omnihuman_jax import sharding
from omnihuman_jax.checkpoint.checkpoints import open_checkpoints
from omnihuman_jax.checkpoint.record import RunRecord
from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.codecs.dct import DctCodec
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import records
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.keypoints import KEYPOINT_NAMES, NUM_KEYPOINTS
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.encoders.speech import load_speech_encoder
from omnihuman_jax.encoders.text import load_text_encoder
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.models.mmdit import MMDiTConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.serving.guidance_omnihuman import GuidanceConfig
from omnihuman_jax.stages import paper_stages
from omnihuman_jax.training import optimizer as optim
from omnihuman_jax.training import train_state

FRAMES, MARGIN = 9, 2
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "man", "speaks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyRun:
    """Folders: run, dataset, clips (as curate leaves them), text and speech (encoders)."""

    run: Path
    dataset: Path
    clips: Path
    text: Path
    speech: Path
    config: experiment.ExperimentConfig


def write_whisper(folder: Path, width: int = 8, layers: int = 1, mlp: int = 16, mels: int = 80) -> None:
    """A Whisper encoder of random weights in Hugging Face layout."""
    rng = np.random.default_rng(0)
    shapes = {
        "conv1.weight": (width, mels, 3),
        "conv1.bias": (width,),
        "conv2.weight": (width, width, 3),
        "conv2.bias": (width,),
    }
    shapes |= {"embed_positions.weight": (1500, width), "layer_norm.weight": (width,), "layer_norm.bias": (width,)}
    for i in range(layers):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"layers.{i}.self_attn.{name}.weight"] = (width, width)
            if name != "k_proj":
                shapes[f"layers.{i}.self_attn.{name}.bias"] = (width,)
        shapes |= {f"layers.{i}.fc1.weight": (mlp, width), f"layers.{i}.fc1.bias": (mlp,)}
        shapes |= {f"layers.{i}.fc2.weight": (width, mlp), f"layers.{i}.fc2.bias": (width,)}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"layers.{i}.{name}.weight": (width,), f"layers.{i}.{name}.bias": (width,)}
    folder.mkdir(parents=True)
    save_file(
        {
            f"model.encoder.{name}": 0.3 * rng.standard_normal(shape).astype(np.float32)
            for name, shape in shapes.items()
        },
        folder / "model.safetensors",
    )
    config = {"model_type": "whisper", "d_model": width, "encoder_layers": layers, "encoder_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config | {"encoder_ffn_dim": mlp, "num_mel_bins": mels}))


def write_bert(folder: Path, width: int = 8, mlp: int = 12, positions: int = 128, seed: int = 1) -> None:
    """A one-layer BERT of random weights, with a tokenizer that knows `WORDS`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), width),
        "embeddings.position_embeddings.weight": (positions, width),
    }
    shapes |= {"embeddings.token_type_embeddings.weight": (2, width)}
    for norm in (
        "embeddings.LayerNorm",
        "encoder.layer.0.attention.output.LayerNorm",
        "encoder.layer.0.output.LayerNorm",
    ):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    linears = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    linears |= {
        "attention.output.dense": (width, width),
        "intermediate.dense": (mlp, width),
        "output.dense": (width, mlp),
    }
    for name, shape in linears.items():
        shapes |= {f"encoder.layer.0.{name}.weight": shape, f"encoder.layer.0.{name}.bias": shape[:1]}
    folder.mkdir(parents=True)
    save_file(
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    config = {"model_type": "bert", "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": mlp, "vocab_size": len(WORDS)}
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))


def moving_picture(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """A soft blob that wanders over a gradient: float32 [T, H, W, 3] in [-1, 1]."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.3, 0.7, 2) + 0.2 * np.stack(
        [np.sin(np.arange(frames) / 3), np.cos(np.arange(frames) / 4)], -1
    )
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    blob = np.exp(-20 * ((y - centre[:, 0, None, None]) ** 2 + (x - centre[:, 1, None, None]) ** 2))
    colour = rng.uniform(-0.8, 0.8, 3)
    return np.clip(0.6 * (x - 0.5)[None, ..., None] + blob[..., None] * colour, -1, 1).astype(np.float32)


def _record(
    spec: records.DatasetSpec, clip: int, window: int, size: tuple[int, int], text, pooled
) -> records.WindowRecord:
    height, width = size
    rng = np.random.default_rng(100 * clip + window)
    codec, rows = DctCodec(), FRAMES + 2 * MARGIN
    video = moving_picture(clip, 40, height, width)
    start = 12 * window
    points = rng.uniform(0, 1, (rows, NUM_KEYPOINTS, 3)) * [width / 16, height / 16, 1]
    return records.WindowRecord(
        window_id=f"clip{clip}/{start}",
        clip_id=f"clip{clip}",
        video=f"video{clip}",
        frames=FRAMES,
        eligible=ConditionSet.of(*Condition).bits,
        latents_FHWC=np.asarray(codec.encode(video[start : start + FRAMES]), np.float16),
        references_RHWC=np.asarray(codec.encode(video[-1:]), np.float16),
        text="a man speaks",
        text_SE=np.asarray(text, np.float16),
        pooled_E=np.asarray(pooled, np.float16),
        audio_TE=rng.standard_normal((rows, spec.audio_width)).astype(np.float16),
        audio_valid_T=np.ones(rows, bool),
        keypoints_TJ3=points.astype(np.float16),
        keypoints_valid_T=np.ones(rows, bool),
    )


def write_dataset(folder: Path, text: Path, speech: Path, sizes=((32, 48), (48, 32))) -> records.DatasetSpec:
    """Two clips, of unlike sizes, of two windows each."""
    bert, whisper = load_text_encoder(text), load_speech_encoder(speech, layers=(0, 1))
    tokens, pooled = bert.encode(["a man speaks", ""])
    spec = records.DatasetSpec(
        codec="dct",
        latent_channels=48,
        text_encoder=bert.ref,
        text_width=bert.width,
        pooled_width=bert.pooled_width,
        speech_encoder=whisper.ref,
        speech_layers=whisper.layers,
        speech_width=whisper.width,
        keypoint_names=KEYPOINT_NAMES,
        margin=MARGIN,
        empty_text_SE=tokens[1],
        empty_pooled_E=pooled[1],
        encoder_sha256={f"text_encoder/{name}": digest for name, digest in bert.sha256.items()}
        | {f"speech_encoder/{name}": digest for name, digest in whisper.sha256.items()},
    )
    windows = [
        _record(spec, clip, window, size, tokens[0], pooled[0])
        for clip, size in enumerate(sizes)
        for window in range(2)
    ]
    records.write_dataset_metadata(folder, spec, [records.write_shard(records.shard_path(folder, 0, 1), windows, spec)])
    latents = np.array([w.latents_FHWC.shape for w in windows])
    column = lambda value: np.full(len(windows), value)  # noqa: E731
    Catalog(
        window_id=np.array([w.window_id for w in windows], object),
        clip_id=np.array([w.clip_id for w in windows], object),
        split=column("train").astype(object),
        record=np.arange(len(windows)),
        start_frame=np.array([int(w.window_id.split("/")[1]) for w in windows]),
        latent_frames=latents[:, 0],
        latent_height=latents[:, 1],
        latent_width=latents[:, 2],
        height=8 * latents[:, 1],
        width=8 * latents[:, 2],
        text_tokens=column(len(tokens[0])),
        num_references=column(1),
        duration_s=column(FRAMES / 25),
        eligible=np.array([w.eligible for w in windows]),
        empty_text_tokens=len(tokens[1]),
    ).save(folder)
    return spec


def write_clips(folder: Path, sizes=((32, 48), (48, 32)), scale: int = 2) -> None:
    """The clips that the dataset's windows are of, `scale` times as large, a mouth in the middle of every frame."""
    from data_pipelines.curate.clips import Clip, Landmarks
    from data_pipelines.curate.known_clips import write_clips

    clips = []
    for number, (height, width) in enumerate(sizes):
        height, width = scale * height, scale * width
        box = np.tile(np.array([0.25 * width, 0.5 * height, 0.75 * width, 0.75 * height], np.float32), (40, 1))
        landmarks = Landmarks(
            keypoints_TJ3=np.tile(np.array([width / 2, height / 2, 0.9], np.float32), (40, NUM_KEYPOINTS, 1)),
            lips_TK2=np.zeros((40, 40, 2), np.float32),
            mouth_box_T4=box,
            face_box_T4=box,
            aperture_T=np.zeros(40, np.float32),
            face_T=np.ones(40, bool),
            faces_T=np.ones(40, np.int32),
        )
        (folder / "poses").mkdir(parents=True, exist_ok=True)
        landmarks.save_pose(folder / "poses" / f"clip{number}.npz", height, width)
        clip = Clip(
            clip_id=f"clip{number}", video=f"video{number}", path=f"video{number}.mp4", sha256="", start_frame=0,
            end_frame=40, fps=25, height=height, width=width, has_audio=True, caption="", caption_source="", scores={},
            reasons={}, eligible=("text", "reference", "audio", "pose"),
        )  # fmt: skip
        clips.append((clip, landmarks))
    write_clips(folder, clips)


def experiment_config(dataset: Path, spec: records.DatasetSpec) -> experiment.ExperimentConfig:
    """A model of two blocks with every branch, sampled in 4 steps."""
    return experiment.ExperimentConfig(
        name="tiny",
        data=experiment.DataConfig(dataset=str(dataset), plan=PlanConfig(latent_tokens=64, text_tokens=32, windows=2)),
        model=MMDiTConfig(
            width=24,
            num_heads=2,
            num_dual_layers=1,
            num_single_layers=1,
            mlp_ratio=2.0,
            latent_channels=48,
            text_width=spec.text_width,
            pooled_width=spec.pooled_width,
            num_refiner_layers=1,
            rope_axes=(4, 4, 4),
            audio=AudioAdapterConfig(features=spec.audio_width, width=12, neighbours=2, num_heads=2, head_dim=6),
            pose=PoseGuiderConfig(keypoints=NUM_KEYPOINTS, width=8, neighbours=1),
        ),
        execution=ExecutionConfig(remat="none"),
        stages=paper_stages(steps=2),
        sampling=SamplingConfig(num_steps=4, guidance=GuidanceConfig(scale=2.0)),
    )


def write_checkpoint(run: Path, config: experiment.ExperimentConfig, spec: records.DatasetSpec, step: int = 6) -> None:
    """Random weights, the EMA's unlike the raw ones, saved as training saves them."""
    mesh = sharding.create_mesh(sharding.MeshConfig(data=1), jax.devices()[:1])
    from omnihuman_jax.models import mmdit

    shapes, axes = mmdit.abstract_params(config.model)
    optimizer = optim.create_optimizer(config.optimizer, train_state.group_labels(axes), axes)
    shardings = train_state.state_shardings(mesh, shapes, axes, optimizer)
    with jax.set_mesh(mesh):
        state = train_state.create_train_state(config.model, optimizer, shardings, 0)

    def randomised(seed: int):
        leaves, tree = jax.tree.flatten(state.params)
        rng = np.random.default_rng(seed)
        noisy = [np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
        return jax.device_put(jax.tree.unflatten(tree, noisy), shardings.params)

    state = state._replace(params=randomised(1), ema=randomised(2), step=jnp.asarray(step, jnp.int32))
    run.mkdir(parents=True)
    experiment.write_config(config, run)
    spec.save(run)
    with open_checkpoints(run / "checkpoints", CheckpointConfig()) as checkpoints:
        checkpoints.save(state, RunRecord(config=experiment.to_json(config), fingerprint="tiny", step=step))
        checkpoints.wait()


def make(root: Path) -> TinyRun:
    """The whole run below `root`."""
    text, speech, dataset, clips, run = (root / name for name in ("text", "speech", "dataset", "clips", "run"))
    write_bert(text)
    write_whisper(speech)
    spec = write_dataset(dataset, text, speech)
    write_clips(clips)
    config = experiment_config(dataset, spec)
    config.validate()
    write_checkpoint(run, config, spec)
    return TinyRun(run=run, dataset=dataset, clips=clips, text=text, speech=speech, config=config)
