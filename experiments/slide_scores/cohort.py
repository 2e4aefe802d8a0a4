"""Scores the slides of a cohort and writes what is made of every map."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib

import numpy as np

from data.slides import Slide, SlideError
from experiments.slide_scores import detections, pictures, scoring
from experiments.slide_scores.scoring import Score


@dataclasses.dataclass(frozen=True)
class Scored:
  """What became of the slides.

  Attributes:
    score: of every slide that could be read, see `detections.slide_score`.
    found: its detections, see `detections.find`.
    faults: why the others could not, by id.
  """

  score: dict[str, float]
  found: dict[str, np.ndarray]
  faults: dict[str, str]


def run(
  folder: pathlib.Path,
  slides: Mapping[str, pathlib.Path],
  score_batch: Score,
  *,
  model: str,
  batch: int = scoring.BATCH,
  patch: int = scoring.PATCH,
  stride: int = scoring.STRIDE,
  threshold: float = detections.THRESHOLD,
  stop: float = detections.STOP,
  radius: int = detections.RADIUS,
  default_mpp: float | None = None,
  tissue: Callable[[Slide, int], np.ndarray] = scoring.tissue_map,
  outlines: Callable[[str], list[np.ndarray]] = lambda slide: [],
  progress: Callable[[str, int, int], None] | None = None,
) -> Scored:
  """Scores slides one after the other; a killed run goes on.

  Writes maps/<id>.npz, .tiff and .png and detections/<id>.csv. Files that are
  there are written again but for the maps, so other thresholds cost seconds.

  Args:
    folder: of the results.
    slides: files by slide id.
    score_batch: see `scoring.score_slide`, as `model`, `batch`, `patch`,
      `stride`, `default_mpp` and `tissue`.
    threshold: see `detections.slide_score`.
    stop: see `detections.find`, as `radius`.
    outlines: returns what pictures show of the tumour of a slide, each [K, 2].
    progress: called with (id, patches scored, patches in all).

  Raises:
    ScoreError: see `scoring.score_slide`; slides that cannot be read are
      collected instead.
  """
  scored = Scored({}, {}, {})
  for name, path in slides.items():
    said = None
    if progress is not None:
      said = lambda done, total, name=name: progress(name, done, total)
    try:
      scores = scoring.score_slide(
        path,
        score_batch,
        folder / 'maps',
        name=name,
        stride=stride,
        patch=patch,
        batch=batch,
        model=model,
        default_mpp=default_mpp,
        tissue=tissue,
        progress=said,
      )
      with Slide(path, default_mpp) as slide:
        mpp = slide.mpp * stride
      found = detections.find(scores, radius=radius, stop=stop, stride=stride)
      pictures.write_tiff(folder / 'maps' / f'{name}.tiff', scores, mpp=mpp)
      pictures.draw(
        folder / 'maps' / f'{name}.png',
        path,
        scores,
        found,
        stride=stride,
        outlines=outlines(name),
      )
    except SlideError as e:
      scored.faults[name] = str(e)
      continue
    detections.write(folder / 'detections' / f'{name}.csv', found)
    scored.score[name] = detections.slide_score(scores, threshold)
    scored.found[name] = found
  return scored
