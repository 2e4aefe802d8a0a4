"""Attention of test slides: stored as HDF5, drawn beside the thumbnail."""

import pathlib

import jax
import numpy as np
import scipy

from data import slides
from experiments.bags.cohort import Cohort, Material
from experiments.maps import tile_scores
from experiments.run import progress
from experiments.run.results import Folder
from kmil_jax.folds import FoldResults
from kmil_jax.inference import MODEL
from kmil_jax.tasks.bags import BagLoader

# Compiled once for all folds: a task is its own key.
_predict = jax.jit(
  lambda task, *args: task.predict_bag(*args), static_argnums=0
)


def write(
  folder: pathlib.Path,
  cohort: Cohort,
  bags: BagLoader,
  rows: np.ndarray,
  trained: FoldResults,
  run: int,
) -> None:
  """Stores what one fold's model sees in each of its test slides.

  Writes `attention/<slide_id>.h5`, see `tile_scores`, with the attributes of
  the feature file and `classes`, and without `coords` if the features have
  none; for models that choose instances also `keep/keep.h5` with bool [N] of
  every slide of the cohort.

  Args:
    folder: of the fold.
    cohort: the slides.
    bags: theirs.
    rows: the test part, bool [n].
    trained: all runs.
    run: the fold's.
  """
  params = jax.tree.map(lambda x: x[run : run + 1], trained.params[MODEL])
  index, store = np.flatnonzero(rows), bags.store
  ends = store.offset + store.length
  probs = trained.prob['test'][run]
  shown = progress.bar(
    zip(index, bags.read(index), probs, strict=True),
    desc='attention files',
    unit='slide',
    total=len(index),
    delay=progress.PATIENCE,
  )
  for bag, x, prob in shown:
    length, kept = store.length[bag], np.zeros(len(x), bool)
    kept[:length] = True
    if trained.keep is not None:
      kept[:length] = trained.keep[run, store.offset[bag] : ends[bag]]
    output = jax.device_get(_predict(trained.task, params, x, kept))
    logits = output.instance_logits[0, :length]
    arrays = {
      'attention': output.attention[0, :length],
      # By JAX each new length of a bag would be compiled for.
      'instance_prob': scipy.special.softmax(logits, axis=-1),
      'kept': kept[:length],
      'prob': prob,
    }
    source = cohort.read_placed(bag)
    if source.coords is not None:
      arrays['coords'] = source.coords
    path = folder / 'attention' / f'{cohort.manifest.slide[bag]}.h5'
    attributes = source.attributes | {'classes': list(cohort.classes)}
    tile_scores.write(path, arrays, attributes)
  if trained.keep is not None:
    places = zip(cohort.manifest.slide, store.offset, ends, strict=True)
    kept = {name: trained.keep[run, a:b] for name, a, b in places}
    tile_scores.write(folder / 'keep' / 'keep.h5', kept, {})


def draw(
  folder: Folder, fold: int, material: Material, *, limit: int | None
) -> list[str]:
  """Draws the maps of the first `limit` test slides, or of all.

  Each picture, `figures/heat_maps/fold_<i>_<slide_id>.png`, is that of
  `overlay.draw`, on the absolute scale. Slides without a file, or whose
  features lack coordinates or the tiles' size, have no picture; how many they
  are is printed. Pictures that are there stay.

  Args:
    folder: of the results.
    fold: its number; where it tests nothing, its validation slides are drawn.
    material: that it was trained on.
    limit: of slides.

  Returns:
    What was wrong with slide files that could not be read or are others.
  """
  # It imports matplotlib, which takes half a second.
  from experiments.maps import overlay

  cohort, is_tested = material.cohort, material.splits[fold].test.any()
  label = dict(zip(cohort.manifest.slide, cohort.label, strict=True))
  without, faults = {}, []
  paths = sorted(folder.at(f'fold_{fold}/attention').glob('*.h5'))[:limit]
  for path in progress.bar(
    paths, desc='heat maps', unit='slide', delay=progress.PATIENCE
  ):
    name = f'figures/heat_maps/fold_{fold}_{path.stem}.png'
    if folder.at(name).exists():
      continue
    if path.stem not in cohort.slides:
      without[path.stem] = 'no slide file'
      continue
    try:
      drawing = overlay.draw(
        cohort.slides[path.stem],
        tile_scores.read({fold: path}),
        label=cohort.classes[label[path.stem]],
        note=None if is_tested else tile_scores.VALIDATION,
      )
    except tile_scores.UnplacedError as e:
      without[path.stem] = str(e).removeprefix(f'{path}: ')
    except (slides.SlideError, tile_scores.MapError) as e:
      faults.append(str(e))
    else:
      folder.save(
        name, lambda p, d=drawing: d.savefig(p, dpi=100, format='png')
      )
  if without and cohort.slides:
    slide, reason = next(iter(without.items()))
    print(
      f'fold {fold}: {len(without)} slides have no heat map. {slide}: {reason}'
    )
  return faults
