"""Writes the phantom cohort: slides, labels and the lesions' outlines."""

from collections.abc import Callable, Iterator
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
  lesion, so the case's label is the slide's. Slides whose image and outlines
  are there are kept, which makes an interrupted call resumable. Pixels do not
  depend on `workers`.

  Args:
    root: the folder to fill: slides/<slide_id>.tiff (OpenSlide, `look.mpp` um
      per pixel), outlines/<slide_id>.json (GeoJSON, one closed polygon per
      lesion, level-0 pixels) and labels.csv (case_id,slide_id,label).
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
  for folder in ('slides', 'outlines'):
    (root / folder).mkdir(parents=True, exist_ok=True)
  wanted = specs(cases_per_class, seed, prefix, look)
  labels = ((case_id(name), name, spec.label) for name, spec in wanted.items())
  header = ('case_id', 'slide_id', 'label')
  files.write_csv(root / 'labels.csv', [header, *labels])
  missing = [
    (root, name, spec)
    for name, spec in wanted.items()
    if not (_slide(root, name).exists() and _outline(root, name).exists())
  ]
  done = len(wanted) - len(missing)
  for _ in _run(missing, workers):
    done += 1
    if progress is not None:
      progress(done, len(wanted))
  return root


def _run(jobs: list[tuple[Path, str, Spec]], workers: int) -> Iterator[None]:
  """Yields once for each finished job; the first error ends the run.

  Threads, not processes: nearly all the time is spent where NumPy and Pillow
  let other threads run, and nothing is imported anew.
  """
  pool = concurrent.futures.ThreadPoolExecutor(workers)
  futures = [pool.submit(_write_slide, *job) for job in jobs]
  try:
    for future in concurrent.futures.as_completed(futures):
      yield future.result()
  finally:
    pool.shutdown(cancel_futures=True)


def _slide(root: Path, name: str) -> Path:
  return root / 'slides' / f'{name}.tiff'


def _outline(root: Path, name: str) -> Path:
  return root / 'outlines' / f'{name}.json'


def _write_slide(root: Path, name: str, spec: Spec) -> None:
  image, truth = slide.render(spec)
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
  collection = {'type': 'FeatureCollection', 'features': features}
  with files.replacing(_outline(root, name)) as part:
    part.write_text(json.dumps(collection))
  tiff.write(_slide(root, name), image, mpp=spec.look.mpp, levels=_LEVELS)
