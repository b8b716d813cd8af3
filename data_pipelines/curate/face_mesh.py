"""The whole mesh of a face, which curation does not keep: what the scores of lips, brows and head are made of."""

from collections.abc import Iterable

import numpy as np

from data_pipelines.curate.landmarks import quiet_stderr

POINTS = 478


def extract_meshes(frames: Iterable[np.ndarray]) -> np.ndarray:
    """float32 [T, 478, 3] of consecutive RGB uint8 frames [H, W, 3]: pixels, depth in the unit of the width; rows of
    nan without a face.

    Raises:
        ImportError: MediaPipe is not installed; names the extra that brings it.
    """
    try:
        from mediapipe.python.solutions import face_mesh
    except ImportError as error:
        raise ImportError(
            f"face meshes need MediaPipe, which cannot be imported ({error}); pip install 'omnihuman-jax[curation]'"
        ) from error
    meshes = []
    with quiet_stderr(), face_mesh.FaceMesh(max_num_faces=1, refine_landmarks=True) as network:
        for frame in frames:
            height, width = frame.shape[:2]
            mesh = np.full((POINTS, 3), np.nan, np.float32)
            for face in network.process(frame).multi_face_landmarks or ():
                points = np.array([(p.x, p.y, p.z) for p in face.landmark], np.float32)
                mesh = points * np.array([width, height, width], np.float32)
            meshes.append(mesh)
    return np.stack(meshes) if meshes else np.zeros((0, POINTS, 3), np.float32)
