"""A trained video autoencoder in a folder of diffusers' layout, as a `VideoCodec`.

Latents are the posterior's mean, not a draw from it: one clip, one latent [D]. No weights come with this package.
HunyuanVideo's may not be used in the EU, the UK and South Korea; Wan 2.1's are Apache-2.0.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from omnihuman_jax.codecs import hunyuan_vae, vae_layers, wan_vae
from omnihuman_jax.encoders.pretrained import PretrainedFolder, Weights, open_pretrained
from omnihuman_jax.typing import SPATIAL_STRIDE, Array, Params, latent_frames_of

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The functions of one kind of autoencoder; `fixed`: keys of config.json that have one supported value."""

    config: Any
    options: Any
    fixed: Mapping[str, Any]
    read_params: Callable[[Any, Weights], Params]
    encode: Callable[[Any, Any, Mapping[str, Any], jax.Array], jax.Array]
    decode: Callable[[Any, Any, Mapping[str, Any], jax.Array], jax.Array]


FAMILIES: dict[str, Family] = {
    "AutoencoderKLHunyuanVideo": Family(
        config=hunyuan_vae.HunyuanVaeConfig,
        options=hunyuan_vae.HunyuanVaeOptions,
        fixed=hunyuan_vae.FIXED,
        read_params=hunyuan_vae.read_params,
        encode=hunyuan_vae.encode,
        decode=hunyuan_vae.decode,
    ),
    "AutoencoderKLWan": Family(
        config=wan_vae.WanVaeConfig,
        options=wan_vae.WanVaeOptions,
        fixed=wan_vae.FIXED,
        read_params=wan_vae.read_params,
        encode=wan_vae.encode,
        decode=wan_vae.decode,
    ),
}
"""By `_class_name` of config.json."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class VaeCodec:
    """An autoencoder with its weights on the default device. Windows of a batch are worked off one after the other.

    `encode` and `decode` are compiled here, once a shape, with the weights as arguments: call them as they are. Under
    another `jax.jit` the weights would become constants of that program.
    """

    name: str
    sha256: Mapping[str, str]
    kind: str
    config: Any
    settings: Any
    params: Params
    mesh: Mesh | None = None

    def over(self, mesh: Mesh) -> "VaeCodec":
        """See `VideoCodec.over`; the weights are on every device."""
        params = jax.device_put(self.params, NamedSharding(mesh, P()))
        return dataclasses.replace(self, params=params, mesh=mesh)

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def options(self) -> dict[str, Any]:
        return dataclasses.asdict(self.settings)

    def encode(self, video_THW3: Array) -> jax.Array:
        """Latents of one window, or of each of a batch.

        Args:
            video_THW3: float [..., 1 + 4n, H, W, 3], range [-1, 1], H and W multiples of 8; leading dims are batch.

        Returns:
            float32 [..., 1 + n, H / 8, W / 8, C], about zero mean and unit variance in each channel on natural video.

        Raises:
            ValueError: the frames are not 1 + 4n, or not RGB, or a side is not a multiple of 8.
        """
        if video_THW3.ndim < 4 or video_THW3.shape[-1] != 3:
            raise ValueError(f"a video is [..., frames, height, width, 3], not {video_THW3.shape}")
        frames, height, width = video_THW3.shape[-4:-1]
        latent_frames_of(frames)
        if height % SPATIAL_STRIDE or width % SPATIAL_STRIDE or not height or not width:
            raise ValueError(f"height {height} and width {width} must be multiples of {SPATIAL_STRIDE}")
        return run("encode", self.kind, self.config, self.settings, self.params, video_THW3, mesh=self.mesh)

    def decode(self, latents_FHWC: Array) -> jax.Array:
        """Frames of one window, or of each of a batch: float32 [..., 1 + 4n, H, W, 3], about [-1, 1].

        Args:
            latents_FHWC: float [..., 1 + n, H / 8, W / 8, C].

        Raises:
            ValueError: the last dim is not C.
        """
        if latents_FHWC.ndim < 4 or latents_FHWC.shape[-1] != self.latent_channels or not latents_FHWC.shape[-4]:
            channels = self.latent_channels
            raise ValueError(
                f"latents of this codec are [..., 1 + n, height, width, {channels}], not {latents_FHWC.shape}"
            )
        return run("decode", self.kind, self.config, self.settings, self.params, latents_FHWC, mesh=self.mesh)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), static_argnames="mesh")
def run(
    method: str, kind: str, config: Any, settings: Any, params: Params, x: Array, *, mesh: Mesh | None = None
) -> jax.Array:
    """`encode` or `decode` of a family over every element of the leading dims of x [..., T or F, H, W, C], float32
    out. With a mesh, over those of one leading dim, which its devices share.
    """
    function, dtype = getattr(FAMILIES[kind], method), compute_dtype(settings)

    def each(params: Params, x_NTHWC: jax.Array) -> jax.Array:
        def one(x_THWC: jax.Array) -> jax.Array:
            return function(config, settings, params, x_THWC.astype(dtype)).astype(jnp.float32)

        return jax.lax.map(one, x_NTHWC)

    x = jnp.asarray(x)
    if mesh is not None:
        axes = P(mesh.axis_names)
        return jax.shard_map(each, mesh=mesh, in_specs=(P(), axes), out_specs=axes, check_vma=False)(params, x)
    y = each(params, x.reshape(-1, *x.shape[-4:]))
    return y.reshape(*x.shape[:-4], *y.shape[1:])


def compute_dtype(settings: Any) -> Any:
    """What the convolutions run in; `auto` is what the default device is good at."""
    name = settings.dtype
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return DTYPES[name]


def load_vae(dir_or_hub_id: str, options: Mapping[str, Any]) -> VaeCodec:
    """The autoencoder in a folder (or on the hub) in diffusers' layout: config.json and
    diffusion_pytorch_model.safetensors.

    Args:
        dir_or_hub_id: a folder, or an id on the hub such as `Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae`.
        options: fields of the family's options; the rest keep their defaults.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another class, a setting or an option that is not supported; weights of which one is missing,
            unknown or of another shape (all are named); weights in pickle form.
    """
    folder = open_pretrained(dir_or_hub_id)
    kind = folder.config.get("_class_name")
    if kind not in FAMILIES:
        raise ValueError(f"{folder.path}: a video codec of class {kind!r}; supported: {', '.join(FAMILIES)}")
    config = config_of(folder)
    settings = options_of(kind, options)
    weights = Weights(folder.tensors(""))
    params = FAMILIES[kind].read_params(config, weights)
    weights.check(str(folder.path))
    return VaeCodec(
        name=folder.ref,
        sha256=folder.sha256(),
        kind=kind,
        config=config,
        settings=settings,
        params=vae_layers.placed(params, compute_dtype(settings)),
    )


def config_of(folder: PretrainedFolder) -> Any:
    """The family's config from config.json; ValueError for a key that we do not know, or a value that we cannot
    honour.
    """
    family, file = FAMILIES[folder.config["_class_name"]], folder.path / "config.json"
    sizes = {field.name for field in dataclasses.fields(family.config)}
    given = {key: value for key, value in folder.config.items() if not key.startswith("_")}
    if unknown := sorted(given.keys() - sizes - family.fixed.keys()):
        raise ValueError(f"{file}: unknown keys {', '.join(unknown)}; a model of a newer diffusers?")
    for key in given.keys() & family.fixed.keys():
        values = set(given[key]) if isinstance(given[key], list) and given[key] else [given[key]]
        if any(value != family.fixed[key] for value in values):
            raise ValueError(f"{file}: {key} {given[key]!r}; only {family.fixed[key]!r} is supported")
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if key in sizes}
    config = family.config(**tuples)
    try:
        config.validate()
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return config


def options_of(kind: str, options: Mapping[str, Any]) -> Any:
    """The family's options; ValueError for an unknown one or a wrong value."""
    family = FAMILIES[kind].options
    types = {field.name: type(field.default) for field in dataclasses.fields(family)}
    for name, value in options.items():
        if name not in types:
            raise ValueError(f"codec option {name}: {kind} has {', '.join(types)}")
        if not isinstance(value, types[name]) or isinstance(value, bool):
            raise ValueError(
                f"codec option {name}={value}: give {'a whole number' if types[name] is int else 'a name'}"
            )
    settings = family(**options)
    settings.validate()
    if settings.dtype not in ("auto", *DTYPES):
        raise ValueError(f"codec option dtype={settings.dtype}: auto, {' or '.join(DTYPES)}")
    return settings


def describe(kind: str, config: Any, dtype: Any) -> tuple[Params, dict[str, tuple[int, ...]]]:
    """(abstract parameters, name -> shape in the original) of an autoencoder of any size; allocates nothing."""
    return vae_layers.describe(lambda weights: FAMILIES[kind].read_params(config, weights), dtype)


def parameter_count(params: Params) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
