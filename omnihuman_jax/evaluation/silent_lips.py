"""Do the lips rest while nobody speaks? Ours: THEval's median deviation, with silence found by loudness alone."""

import numpy as np


def silent_lip_movement(opening_T: np.ndarray, silent_T: np.ndarray) -> float:
    """Median distance of the opening from its mean over the silent frames; nan with fewer than two of them.

    Args:
        opening_T: of `lip_opening`, nan where no face was found.
        silent_T: bool, of `silent_frames`.
    """
    silent = np.asarray(opening_T)[np.asarray(silent_T, bool)]
    silent = silent[np.isfinite(silent)]
    return float(np.median(np.abs(silent - silent.mean()))) if len(silent) > 1 else float("nan")
