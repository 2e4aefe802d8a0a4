"""Scores all tissue of a slide, in a job that goes on where it was killed."""

from collections.abc import Callable
import hashlib
import json
import pathlib
import time
from typing import Any
import zipfile

import numpy as np

from data.camelyon16.patches import STRIDE, tissue_map
from data.files import replacing
from data.slides import Slide, SlideError
from experiments.slide_scores import reading

PATCH = 256  # Side of a patch, level-0 pixels.
BATCH = 64
_SAVE = 30.0  # Seconds between two saves of what has been scored.

# Patches [T, 256, 256, 3], uint8, to their scores [T].
Score = Callable[[np.ndarray], np.ndarray]


class ScoreError(ValueError):
  """Scores that cannot be used; names the file and what to do."""


def score_slide(
  path: pathlib.Path | str,
  score_batch: Score,
  folder: pathlib.Path | str,
  *,
  name: str | None = None,
  stride: int = STRIDE,
  patch: int = PATCH,
  batch: int = BATCH,
  model: str = '',
  default_mpp: float | None = None,
  tissue: Callable[[Slide, int], np.ndarray] = tissue_map,
  progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
  """Returns the map of a slide's scores, float32 [H, W].

  Every pixel of tissue gets the score of the patch around its middle, ((x +
  0.5) * stride, (y + 0.5) * stride); the others are 0. A patch that would reach
  beyond the slide is moved inwards until it does not: it holds no pixel that is
  not the slide's, and pixels of the map near the border may share one. (FW-RD's
  code fills it up with black.)

  A call that is killed goes on when it is repeated. Patches are scored in the
  same batches whether it was or not, so the map is the same.

  Args:
    path: of the slide.
    score_batch: always called with `batch` patches, uint8 [T, patch, patch,
      3]; the last call of a slide is filled up with black ones.
    folder: <name>.npz, the map, is written there, and <name>.part.npz while the
      job runs; a map that is there is read.
    name: of the slide; its id by default.
    stride: level-0 pixels between patches, and per pixel of the map.
    patch: side of a patch, level-0 pixels.
    batch: patches per call, T.
    model: what tells one scorer from another, such as a hash of its weights.
    default_mpp: um/px of slides that do not state it.
    tissue: returns True on tissue, bool [H, W], of an open slide and a stride.
    progress: called with (patches scored, patches in all) after every batch.

  Raises:
    SlideError: if the slide cannot be read, is smaller than a patch or holds no
      tissue.
    ScoreError: if what is in `folder` was made of another slide, by another
      model or with other settings, or a score is not finite.
  """
  with Slide(path, default_mpp) as slide:
    mask = tissue(slide, stride)
    places = _places(slide, mask, stride, patch)
    done = pathlib.Path(folder) / f'{name or slide.slide_id}.npz'
    part = done.with_name(f'{name or slide.slide_id}.part.npz')
    settings = {
      'slide': [slide.slide_id, slide.width, slide.height],
      'stride': stride,
      'patch': patch,
      'batch': batch,
      'model': model,
      'tissue': hashlib.sha256(np.packbits(mask)).hexdigest()[:16],
    }
    if (scores := _load(done, settings)) is not None:
      part.unlink(missing_ok=True)  # A kill between the two leaves both.
      return scores
    kept = _load(part, settings)
    values = [np.zeros(0, np.float32) if kept is None else kept]
    count, saved = len(values[0]), time.monotonic()
    for patches in reading.read(slide, places[count:], size=patch, batch=batch):
      said = np.asarray(score_batch(patches), np.float32)
      if said.shape != (batch,):
        raise ScoreError(f'found scores {said.shape} of {batch} patches')
      said = said[: len(places) - count]
      if not np.isfinite(said).all():
        bad = places[count + int(np.isfinite(said).argmin())].tolist()
        raise ScoreError(
          f'{slide.path.name}: the score of the patch at {bad} is not finite; '
          'look at the weights'
        )
      values.append(said)
      count += len(said)
      if progress is not None:
        progress(count, len(places))
      if time.monotonic() - saved >= _SAVE:
        values = [np.concatenate(values)]
        _save(part, settings, values[0])
        saved = time.monotonic()
  scores = np.zeros(mask.shape, np.float32)
  scores[mask] = np.concatenate(values)
  _save(done, settings, scores)
  part.unlink(missing_ok=True)
  return scores


def _places(
  slide: Slide, mask: np.ndarray, stride: int, patch: int
) -> np.ndarray:
  """Returns upper left corners (x, y) of the patches, row by row, [n, 2]."""
  if min(slide.width, slide.height) < patch:
    raise SlideError(
      f'{slide.path.name}: {slide.width} x {slide.height} px are smaller than '
      f'a patch of {patch} px; leave the slide out.'
    )
  if not mask.any():
    raise SlideError(
      f'{slide.path.name}: no tissue found; look at it, and leave it out.'
    )
  xy = np.argwhere(mask)[:, ::-1] * stride + stride // 2 - patch // 2
  return np.clip(xy, 0, (slide.width - patch, slide.height - patch))


def _save(
  path: pathlib.Path, settings: dict[str, Any], scores: np.ndarray
) -> None:
  with replacing(path) as file, file.open('wb') as f:
    np.savez_compressed(f, scores=scores, settings=json.dumps(settings))


def _load(path: pathlib.Path, settings: dict[str, Any]) -> np.ndarray | None:
  """Returns scores made with these settings; None if there are none."""
  try:
    with np.load(path, allow_pickle=False) as f:
      scores, found = f['scores'], json.loads(str(f['settings']))
  except FileNotFoundError:
    return None
  except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as e:
    raise ScoreError(f'{path}: cannot be read ({e}); remove it') from e
  differ = [
    f'{name}: {found.get(name)} there, {value} now'
    for name, value in settings.items()
    if found.get(name) != value
  ]
  if differ:
    raise ScoreError(
      f'{path}: made with other settings ({"; ".join(differ)}); remove it, or '
      'choose another folder'
    )
  return scores
