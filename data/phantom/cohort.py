"""Writes the phantom cohort: slides, labels and the lesions' outlines."""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from data import files, tiff
from data.ahead import ahead
from data.phantom import slide, stain
from data.phantom.slide import LABELS, Spec

Progress = Callable[[int, int], None]  # Of how much is done, and of all.
_LEVELS = 4  # Downsampled by 1, 2, 4 and 8.
_MOST_SLIDES = 3  # Per case.
_WORKERS = 2

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
  cases_per_class: int, seed: int, prefix: str = '', look=stain.DEFAULT
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


def no_progress(done: int, total: int) -> None:
  """Shows nothing."""


def in_threads(work: Callable, items: Collection, progress: Progress) -> list:
  """Returns what work on each item returns, in order; the first error ends it.

  Threads, not processes: nearly all the time is spent where NumPy and Pillow
  let other threads run, and nothing is imported anew.

  Args:
    work: on one item.
    items: which.
    progress: called with (items done, items in all) after every item.
  """
  results = []
  for result in ahead(work, items, count=_WORKERS, threads=_WORKERS):
    results.append(result)
    progress(len(results), len(items))
  return results


def make(
  root: Path,
  *,
  cases_per_class: int = 12,
  seed: int = 0,
  prefix: str = '',
  look: stain.Appearance = stain.DEFAULT,
  progress: Progress = no_progress,
) -> None:
  """Writes a cohort of lymph-node slides whose truth is known.

  Slides are of five classes, `LABELS`; every slide of a tumour case holds a
  lesion, so the case's label is the slide's. Slides that are there are kept,
  which makes an interrupted call resumable.

  Args:
    root: the folder to fill: slides/<slide_id>.tiff (OpenSlide, `look.mpp` um
      per pixel), outlines/<slide_id>.json of slides with lesions (GeoJSON, one
      closed polygon per lesion, level-0 pixels) and labels.csv
      (case_id,slide_id,label).
    cases_per_class: cases of each class; a case has one to three slides.
    seed: another seed is another cohort.
    prefix: of case and slide ids, which no two cohorts should share.
    look: laboratory and scanner.
    progress: called with (slides done, slides in all) after every slide.
  """
  wanted = specs(cases_per_class, seed, prefix, look)
  write(root, wanted, 'outlines', progress)
  labels = ((case_id(name), name, spec.label) for name, spec in wanted.items())
  header = ('case_id', 'slide_id', 'label')
  # Last: its presence says that all is there.
  files.write_csv(root / 'labels.csv', [header, *labels])


def write(root: Path, wanted: dict, outlines: str, progress: Progress) -> None:
  """Writes the slides that are missing, and the outlines of their lesions.

  Args:
    root: gets slides/<name>.tiff.
    wanted: the specification of each slide by its name.
    outlines: the folder in `root` that gets <name>.json, of slides that hold
      lesions.
    progress: called with (slides done, slides in all) after every slide.
  """
  paths = {name: root / 'slides' / f'{name}.tiff' for name in wanted}
  missing = [name for name, path in paths.items() if not path.exists()]

  def render(name: str) -> None:
    image, truth = slide.render(wanted[name])
    if truth.outlines:  # First: a slide that is there is complete.
      with files.replacing(root / outlines / f'{name}.json') as part:
        part.write_text(truth.geojson())
    mpp = wanted[name].look.mpp
    tiff.write(paths[name], image, mpp=mpp, levels=_LEVELS)

  kept = len(wanted) - len(missing)
  show = lambda done, _: progress(kept + done, len(wanted))
  in_threads(render, missing, show)
