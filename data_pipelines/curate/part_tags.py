"""What `select` knows of the clips of a part, a few numbers each, while it goes through a table."""

import dataclasses

import numpy as np

from data_pipelines.curate.tagging import Tags

# Why a clip is not in the sets at all.
DUPLICATE = "the same content as an earlier clip"
UNREADABLE = "cannot be read"
GONE = "not in the source any more"
NO_CAPTION = "its caption cannot be read"
NOT_CAPTIONED = "the caption command gave no caption"
MUCH_ALIKE = "much like another clip"
COPY = "the same film as another clip, encoded once more"
WHYS = (DUPLICATE, UNREADABLE, GONE, NO_CAPTION, NOT_CAPTIONED, MUCH_ALIKE, COPY)
IN = -1


@dataclasses.dataclass(kw_only=True, slots=True)
class PartTags:
    """A part's clips: tags, the scores that failed (float32 [n, 4]), why a clip is left out (an index of `WHYS`, or
    `IN`), the hash of its content, its group of duplicates. unlooked: clips without landmarks that could now be of
    use. signature: uint64 [n, 4] of embeddings (of rows without one too, see `embedded`), and video: uint64 [n] by its
    bytes, where embeddings are compared.
    lines: of the shorter side. hashed: which clips have all of `near_copies.WORDS`.
    """

    number: int
    tags: Tags
    failed_score: np.ndarray
    left_out: np.ndarray
    content: np.ndarray
    seconds: np.ndarray
    dedup_group: np.ndarray
    unlooked: int
    signature: np.ndarray
    embedded: np.ndarray
    video: np.ndarray
    lines: np.ndarray
    hashed: np.ndarray
