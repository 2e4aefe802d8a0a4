"""Writes the phantom cohort: slides, labels and the lesions' outlines."""

from collections.abc import Callable
import concurrent.futures
import json
from pathlib import Path

import numpy as np

from data import files, tiff
from data.phantom import slide, stain
from data.phantom.slide import LABELS, Spec

_LEVELS = 4  # Downsampled by 1, 2, 4 and 8.
_MOST_SLIDES = 3  # Per case.
_DEFAULT_LOOK = stain.Appearance()

# A second hospital's cohort, as arguments of `make`: 75 slides of 35 cases, 7
# of each class (Zheng et al. 2024 had 85 slides). Haematoxylin is bluer and
# eosin more orange by several of the deviations between cases; the glass is
# darker, the scanner blurs more, is noisier and has smaller pixels.
EXTERNAL = {
  'cases_per_class': 7,
  'seed': 1,
  'prefix': 'ext_',
  'look': stain.Appearance(
    haematoxylin=(0.92, 0.86, 0.34),
    eosin=(0.06, 0.54, 0.42),
    glass=0.925,
    blur=0.9,
    noise=3.2,
    mpp=0.46,
  ),
}


def specs(
  cases_per_class: int,
  seed: int,
  prefix: str = '',
  look: stain.Appearance = _DEFAULT_LOOK,
) -> dict[str, Spec]:
  """Returns the specification of every slide by its id, in order.

  Each run of five cases holds every class once, in an order of its own, so a
  smaller cohort is the beginning of a larger one and ids tell nothing. A case
  has one to three slides, two on average.
  """
  slides = {}
  for case in range(cases_per_class * len(LABELS)):
    block, place = divmod(case, len(LABELS))
    order = np.random.default_rng([seed, block, 1]).permutation(len(LABELS))
    label = LABELS[order[place]]
    draw = np.random.default_rng([seed, case, 2])
    for number in range(int(draw.integers(1, _MOST_SLIDES + 1))):
      name = f'{prefix}case_{case + 1:03d}_{"abc"[number]}'
      slides[name] = Spec(seed, case, number, label, look)
  return slides


def case_id(slide_id: str) -> str:
  """Returns the case a slide of this cohort belongs to."""
  return slide_id.rpartition('_')[0]


def make(
  root: Path,
  *,
  cases_per_class: int = 12,
  seed: int = 0,
  prefix: str = '',
  look: stain.Appearance = _DEFAULT_LOOK,
  workers: int = 2,
  progress: Callable[[int, int], None] | None = None,
) -> Path:
  """Writes a cohort of lymph-node slides whose truth is known.

  Slides are of five classes, `LABELS`; every slide of a tumour case holds a
  lesion, so the case's label is the slide's. Slides that are there are kept,
  which makes an interrupted call resumable. Pixels do not depend on `workers`.

  Args:
    root: the folder to fill: slides/<slide_id>.tiff (OpenSlide, `look.mpp` um
      per pixel), outlines/<slide_id>.json of slides with lesions (GeoJSON, one
      closed polygon per lesion, level-0 pixels) and labels.csv
      (case_id,slide_id,label).
    cases_per_class: cases of each class; a case has one to three slides.
    seed: another seed is another cohort.
    prefix: of case and slide ids, which no two cohorts should share.
    look: laboratory and scanner.
    workers: threads that render.
    progress: called with (slides done, slides in all) after every slide.

  Returns:
    `root`.

  Raises:
    ValueError: if there is nothing to make or nobody to make it.
  """
  if cases_per_class < 1 or workers < 1:
    raise ValueError(
      f'found cases_per_class={cases_per_class} and workers={workers}. '
      'Both must be at least 1.'
    )
  root = Path(root)
  root.mkdir(parents=True, exist_ok=True)
  wanted = specs(cases_per_class, seed, prefix, look)
  labels = ((case_id(name), name, spec.label) for name, spec in wanted.items())
  header = ('case_id', 'slide_id', 'label')
  write(root, wanted, 'outlines', workers, progress)
  # Last: its presence says that all is there.
  files.write_csv(root / 'labels.csv', [header, *labels])
  return root


def write(
  root: Path,
  wanted: dict[str, Spec],
  outlines: str,
  workers: int = 2,
  progress: Callable[[int, int], None] | None = None,
) -> None:
  """Writes the slides that are missing, and the outlines of their lesions.

  The first error ends it. Threads, not processes: nearly all the time is spent
  where NumPy and Pillow let other threads run, and nothing is imported anew.

  Args:
    root: gets slides/<name>.tiff.
    wanted: slides by name.
    outlines: the folder in `root` that gets <name>.json, of slides that hold
      lesions.
    workers: threads that render.
    progress: called with (slides done, slides in all) after every slide.
  """
  for folder in ('slides', outlines):
    (root / folder).mkdir(parents=True, exist_ok=True)
  paths = {name: root / 'slides' / f'{name}.tiff' for name in wanted}
  missing = [name for name, path in paths.items() if not path.exists()]

  def render(name: str) -> None:
    image, truth = slide.render(wanted[name])
    if truth.outlines:  # First: a slide that is there is complete.
      with files.replacing(root / outlines / f'{name}.json') as part:
        part.write_text(_geojson(truth))
    mpp = wanted[name].look.mpp
    tiff.write(paths[name], image, mpp=mpp, levels=_LEVELS)

  pool = concurrent.futures.ThreadPoolExecutor(workers)
  jobs = [pool.submit(render, name) for name in missing]
  done = len(wanted) - len(missing)
  try:
    for job in concurrent.futures.as_completed(jobs):
      job.result()
      done += 1
      if progress is not None:
        progress(done, len(wanted))
  finally:
    pool.shutdown(cancel_futures=True)


def _geojson(truth: slide.Truth) -> str:
  features = [
    {
      'type': 'Feature',
      'geometry': {
        'type': 'Polygon',
        'coordinates': [np.r_[ring, ring[:1]].round(1).tolist()],
      },
      'properties': {'classification': {'name': truth.kind}},
    }
    for ring in truth.outlines
  ]
  return json.dumps({'type': 'FeatureCollection', 'features': features})
