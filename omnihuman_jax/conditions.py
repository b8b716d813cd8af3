"""The four conditions, sets of them, and which of them an inference mode activates.

Strength of correlation with motion grows text < reference < audio < pose; the paper's sentence
that says "decreases" contradicts its own principles (paper page, "Training").
"""

import dataclasses
import enum
from collections.abc import Iterable, Iterator

from omnihuman_jax import segments
from omnihuman_jax.typing import MOTION_LATENTS, Array, Batch


class Condition(enum.IntEnum):
    """A driving signal, ordered from the weakest to the strongest [S]."""

    TEXT = 0
    REFERENCE = 1
    AUDIO = 2
    POSE = 3

    @property
    def label(self) -> str:
        """Lower-case name used in configs, logs, catalogs and file names."""
        return self.name.lower()

    @classmethod
    def parse(cls, label: str) -> "Condition":
        """The condition called `label`; ValueError names the four that exist."""
        try:
            return cls[label.strip().upper()]
        except KeyError:
            known = ", ".join(c.label for c in cls)
            raise ValueError(f"unknown condition {label!r}; the conditions are {known}") from None


NUM_CONDITIONS = len(Condition)


@dataclasses.dataclass(frozen=True, slots=True)
class ConditionSet:
    """An immutable set of conditions, stored as a bitmask (bit i = Condition(i)) so that it fits a catalog column."""

    bits: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.bits < 1 << NUM_CONDITIONS:
            raise ValueError(f"condition bits {self.bits} outside [0, {1 << NUM_CONDITIONS})")

    @classmethod
    def of(cls, *conditions: Condition) -> "ConditionSet":
        return cls(sum(1 << c for c in set(conditions)))

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> "ConditionSet":
        return cls.of(*(Condition.parse(label) for label in labels))

    @classmethod
    def every(cls) -> "tuple[ConditionSet, ...]":
        """All 16 sets, by bitmask."""
        return tuple(cls(bits) for bits in range(1 << NUM_CONDITIONS))

    def __contains__(self, condition: Condition) -> bool:
        return bool(self.bits >> condition & 1)

    def __iter__(self) -> Iterator[Condition]:
        return (c for c in Condition if c in self)

    def __len__(self) -> int:
        return self.bits.bit_count()

    def issubset(self, other: "ConditionSet") -> bool:
        return self.bits & ~other.bits == 0

    def __or__(self, other: "ConditionSet") -> "ConditionSet":
        return ConditionSet(self.bits | other.bits)

    def __and__(self, other: "ConditionSet") -> "ConditionSet":
        return ConditionSet(self.bits & other.bits)

    def without(self, *conditions: Condition) -> "ConditionSet":
        return ConditionSet(self.bits & ~ConditionSet.of(*conditions).bits)

    @property
    def label(self) -> str:
        """`text+audio`; the empty set is `none`."""
        return "+".join(c.label for c in self) or "none"

    def mask(self) -> tuple[bool, ...]:
        """One bool a condition, in the order of `Condition`."""
        return tuple(c in self for c in Condition)


def active_at_inference(*, audio: bool, pose: bool) -> ConditionSet:
    """The conditions that a set of driving signals activates [S, Inference].

    Audio-driven: all but pose. Pose-driven: all but audio. Both: all. Neither: text and reference. An active
    condition brings the weaker ones with it; the caller leaves out those for which it has no input.
    """
    active = ConditionSet.of(Condition.TEXT, Condition.REFERENCE)
    if audio:
        active |= ConditionSet.of(Condition.AUDIO)
    if pose:
        active |= ConditionSet.of(Condition.POSE)
    return active


def clean_mask(batch: Batch) -> Array:
    """Tokens that the model is given clean: modulated with t = 0, kept by the sampler, without loss [S, D].

    Reference tokens, and the first `MOTION_LATENTS` latents of the windows whose motion frames are active. Padding is
    not clean; it is no window's either (`segment_ids_BL` 0). Works on numpy and jax arrays alike.

    Returns:
        bool [B, L].
    """
    motion_BL = segments.of_window(batch.motion_BG, batch.segment_ids_BL)
    return batch.is_reference_BL | (motion_BL & (batch.positions_BL3[..., 0] < MOTION_LATENTS))
