"""Faces that the mesh does not see in the whole picture, small ones above all: a detector (`mtcnn.py`) says where they
are, and the mesh looks at each again, enlarged.

The mesh's own detector sees the picture in 128 x 128 pixels, where the head of a full figure is ten pixels high. Two
networks have to agree: what the one calls a face, and the mesh finds nothing in, is none.

The detector takes 20 times as long as the mesh, so a face that was found is looked for where it was on the frame
before.
"""

from typing import Any

import numpy as np

from data_pipelines.curate import mtcnn

# Side of what is cut out, in sides of the face, and of the picture that the mesh sees.
_REACH = 2.0
_SIDE_PX = 256
# Frames of the shot after which the whole picture is looked through again: where there was nobody, and where somebody
# is followed.
_AGAIN_EMPTY, _AGAIN_FOLLOWED = 12, 25


class SmallFaces:
    """The two networks, open until they are closed, for the frames of one shot: of each, one of `find` and `rest`."""

    def __init__(self, max_faces: int, every: int = 1):
        """max_faces: so many at most, the largest. every: frames of the shot from one call to the next."""
        from mediapipe.python.solutions import face_mesh

        self._mesh: Any = face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True)
        self._max_faces, self._every = max_faces, every
        self._followed: list[tuple[int, int, int]] = []
        self._looked_through = 0  # so many frames ago
        self._saw_nobody = False  # when it was looked through

    def close(self) -> None:
        self._mesh.close()

    def find(self, frame: np.ndarray) -> list[np.ndarray]:
        """float32 [478, 2] of each face in the next frame, RGB uint8 [H, W, 3], in shares of the picture."""
        found = self._meshes(frame, self._followed)
        if self._looks_through(bool(found)):
            faces = mtcnn.find_faces(frame)[: self._max_faces]
            found = self._meshes(frame, [_square(face) for face in faces]) or found
            self._looked_through, self._saw_nobody = 0, not found
        self._looked_through += self._every
        self._followed = [_square(np.concatenate([points.min(0), points.max(0)])) for points in found]
        return [(points / [frame.shape[1], frame.shape[0]]).astype(np.float32) for points in found]

    def rest(self) -> None:
        """The next frame has a face that is large enough for the mesh."""
        self._followed, self._saw_nobody = [], False

    def _looks_through(self, follows: bool) -> bool:
        if follows:
            return self._looked_through >= _AGAIN_FOLLOWED
        return not self._saw_nobody or self._looked_through >= _AGAIN_EMPTY

    def _meshes(self, frame: np.ndarray, squares: list[tuple[int, int, int]]) -> list[np.ndarray]:
        """[478, 2] of the face in each square that has one, in pixels of the frame."""
        import cv2  # comes with MediaPipe in the curation extra

        found = []
        for x0, y0, side in squares:
            enlarged = cv2.resize(mtcnn.cut(frame, x0, y0, side), (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_CUBIC)
            for face in self._mesh.process(enlarged).multi_face_landmarks or ():
                found.append(np.array([(p.x, p.y) for p in face.landmark]) * side + [x0, y0])
        return found


def _square(box: np.ndarray) -> tuple[int, int, int]:
    """(left, top, side) in pixels of what is cut out around a face of x0, y0, x1, y1."""
    side = max(round(_REACH * float((box[2:4] - box[:2]).max())), 2)
    x0, y0 = (round(float(middle) - side / 2) for middle in (box[:2] + box[2:4]) / 2)
    return x0, y0, side
