"""Sampling of `OmniHumanForVideo`: noise to latent tokens along the learned velocity, with annealed guidance. Needs
torch alone.

    noise = token_noise(seed, slots(batch), batch["token_BL"], model.config.patch_channels)
    tokens = sample(model, batch, noise, timesteps_KBG, scales_KD, branches=[batch_without_text_and_audio])

Timesteps and guidance scales are numbers: `guidance_omnihuman.py`. The same noise as the trainer's: the same seed gives
the same video. Shape suffixes as in `modeling_omnihuman.py`; K sampling steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MOTION_LATENTS = 2
Batch = Mapping[str, Tensor]


def video_tokens(batch: Batch) -> Tensor:
    """Number of video tokens of each window, reference tokens not counted: [B, G]."""
    slots_G = torch.arange(1, batch["motion_BG"].shape[1] + 1, device=batch["segment_ids_BL"].device)
    video_BL = torch.where(batch["is_reference_BL"], 0, batch["segment_ids_BL"])
    return (video_BL[:, :, None] == slots_G).sum(1)


def slots(batch: Batch) -> Tensor:
    """Number of the window that each token belongs to, which its noise is keyed on: [B, L]."""
    return batch["slot_BG"].long().gather(1, (batch["segment_ids_BL"].long() - 1).clamp(min=0))


_WORD = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _threefry(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Threefry-2x32 of 20 rounds (Salmon et al., SC 2011), as jax.random counts: words of 32 bits in int64 tensors."""
    keys = (k0, k1, k0 ^ k1 ^ 0x1BD11BDA)
    x0, x1 = (x0 + k0) & _WORD, (x1 + k1) & _WORD
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = (x0 + x1) & _WORD
            x1 = (((x1 << rotation) | (x1 >> (32 - rotation))) & _WORD) ^ x0
        x0 = (x0 + keys[(group + 1) % 3]) & _WORD
        x1 = (x1 + keys[(group + 2) % 3] + group + 1) & _WORD
    return x0, x1


# Giles' approximation of the inverse error function in single precision, for w < 5 and above.
_NEAR = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_FAR = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)


def _normal(bits: Tensor) -> Tensor:
    """Words of 32 random bits to standard normal float32, as jax.random.normal does it."""
    lowest = torch.tensor(-1.0, device=bits.device).nextafter(torch.tensor(0.0, device=bits.device))
    unit = ((bits >> 9) | 0x3F800000).to(torch.int32).view(torch.float32) - 1.0
    u = torch.maximum(lowest, unit * (1.0 - lowest) + lowest)
    w = -torch.log1p(-u * u)
    near, at = w < 5, torch.where(w < 5, w - 2.5, w.sqrt() - 3.0)
    p = torch.zeros_like(u)
    for a, b in zip(_NEAR, _FAR, strict=True):
        p = p * at + torch.where(near, torch.full_like(u, a), torch.full_like(u, b))
    return math.sqrt(2.0) * (p * u)


def token_noise(seed: int, slot_BL: Tensor, token_BL: Tensor, channels: int) -> Tensor:
    """Standard normal noise [B, L, C] float32 keyed on (seed, slot, token): the trainer's own, up to rounding."""
    zero = torch.zeros_like(slot_BL, dtype=torch.int64)
    k0, k1 = zero, zero + (seed & _WORD)
    for number in (slot_BL.long() & _WORD, token_BL.long().clamp(min=0)):
        k0, k1 = _threefry(k0, k1, zero, number)
    counter_C = torch.arange(channels, device=slot_BL.device, dtype=torch.int64)
    x0, x1 = _threefry(k0[..., None], k1[..., None], torch.zeros_like(counter_C), counter_C)
    return _normal(x0 ^ x1)


def given_tokens(batch: Batch) -> Tensor:
    """Tokens that are given clean and not sampled: reference tokens, motion latents, padding; bool [B, L]."""
    segment_BL = batch["segment_ids_BL"]
    motion_BL = batch["motion_BG"].gather(1, (segment_BL.long() - 1).clamp(min=0)) & (segment_BL > 0)
    return (
        batch["is_reference_BL"] | (motion_BL & (batch["positions_BL3"][..., 0] < MOTION_LATENTS)) | (segment_BL == 0)
    )


def _velocity(
    model: Callable[..., Tensor], batch: Batch, branches: Sequence[Batch]
) -> Callable[[Tensor, Tensor, Sequence[float]], Tensor]:
    """(tokens, t, a guidance scale for each branch) -> velocity [B, L, C] float32."""
    if not branches:
        return lambda tokens_BLC, t_BG, scales: model(tokens_BLC, t_BG, batch).float()
    rows = [batch, *branches]
    together = all(batch[name].shape == branch[name].shape for branch in branches for name in batch)
    all_rows = {name: torch.cat([row[name] for row in rows]) for name in batch} if together else {}

    def guided(tokens_BLC: Tensor, t_BG: Tensor, scales: Sequence[float]) -> Tensor:
        if together:
            count = len(rows)
            velocities = (
                model(torch.cat([tokens_BLC] * count), torch.cat([t_BG] * count), all_rows).float().chunk(count)
            )
        else:
            velocities = tuple(model(tokens_BLC, t_BG, row).float() for row in rows)
        result = velocities[-1]
        for scale, with_it, without in zip(scales, velocities, velocities[1:]):
            result = result + float(scale) * (with_it - without)
        return result

    return guided


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
    batch: Batch,
    noise_BLC: Tensor,
    timesteps_KBG: Tensor,
    scales_KD: Sequence[Sequence[float]],
    *,
    branches: Sequence[Batch] = (),
    solver: str = "euler",
    on_step: Callable[[int, int], Any] = lambda done, total: None,
) -> Tensor:
    """Latent tokens [B, L, C] float32: steps along the velocity, from t = 1 to t = 0, a model call each.

    Args:
      model: `OmniHumanForVideo`, or what `torch.compile` makes of it.
      batch: the packed batch; `latents_BLC` holds the given tokens (reference, motion frames), which leave as they
          came.
      noise_BLC: `token_noise`, or any standard normal noise.
      timesteps_KBG: t of each window from 1 to 0, [steps + 1, B, G] (`guidance_omnihuman.timesteps`).
      scales_KD: guidance scale of each step and branch (`guidance_omnihuman.branch_scales`).
      branches: the batch without what each branch drops (`batch_omnihuman.without`); none turns guidance off, which
        halves the cost. All run as one batch of (1 + D) B rows, or one after the other where they have different
        numbers of text rows.
      solver: `euler`, or `ab2` (Adams-Bashforth of second order); anything else is a ValueError.
      on_step: hears (steps done, steps in all).
    """
    clean_BLC, given_BL1 = batch["latents_BLC"].float(), given_tokens(batch)[..., None]
    segment_BL = batch["segment_ids_BL"].long()
    if solver not in ("euler", "ab2"):
        raise ValueError(f"solver {solver!r} is unknown; the solvers are euler, ab2")
    velocity, before = _velocity(model, batch, branches), None
    tokens_BLC = torch.where(given_BL1, clean_BLC, noise_BLC.float())
    steps = len(timesteps_KBG) - 1
    for step in range(steps):
        t_BG, next_t_BG = timesteps_KBG[step], timesteps_KBG[step + 1]
        velocity_BLC = velocity(tokens_BLC, t_BG, scales_KD[step])
        change_BL = (next_t_BG - t_BG).gather(1, (segment_BL - 1).clamp(min=0))
        slope_BLC = velocity_BLC
        if solver == "ab2":
            if before is not None:
                slope_BLC = velocity_BLC + (0.5 * change_BL / before[1])[..., None] * (velocity_BLC - before[0])
            before = (velocity_BLC, change_BL)
        tokens_BLC = torch.where(given_BL1, clean_BLC, tokens_BLC + change_BL[..., None] * slope_BLC)
        on_step(step + 1, steps)
    return tokens_BLC
