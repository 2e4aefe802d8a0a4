"""Attention of test slides: stored as HDF5, drawn beside the thumbnail."""

import json
import pathlib

import jax
import numpy as np
from scipy import special

from data import slides
from data.files import replacing
from experiments import files
from experiments.cohort import Cohort
from experiments.slide_maps import heat_map, tile_scores
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

  Writes `attention/<slide_id>.h5` with `coords` [N, 2] (level-0 pixels; if the
  features have any), `attention` [N, A], `instance_prob` [N, C], `kept` [N] and
  the slide's `prob` [C], and the attributes of the feature file besides
  `classes`; for models that choose instances also `keep/keep.h5`
  with bool [N] of every slide of the cohort.

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
  probs = trained.prob['test'][run]
  for bag, x, prob in zip(index, bags.read(index), probs, strict=True):
    length, offset = store.length[bag], store.offset[bag]
    kept = np.zeros(len(x), bool)
    kept[:length] = True
    if trained.keep is not None:
      kept[:length] = trained.keep[run, offset : offset + length]
    said = jax.device_get(_predict(trained.task, params, x, kept))
    arrays = {
      'attention': said.attention[0, :length],
      # By JAX each new length of a bag would be compiled for.
      'instance_prob': special.softmax(
        said.instance_logits[0, :length], axis=-1
      ),
      'kept': kept[:length],
      'prob': prob,
    }
    source = cohort.read_placed(bag)
    if source.coords is not None:
      arrays['coords'] = source.coords
    name = cohort.manifest.slide[bag]
    attributes = source.attributes | {'classes': list(cohort.classes)}
    files.write_h5(folder / 'attention' / f'{name}.h5', arrays, attributes)
  if trained.keep is not None:
    ends = store.offset + store.length
    arrays = {
      name: trained.keep[run, start:end]
      for name, start, end in zip(
        cohort.manifest.slide, store.offset, ends, strict=True
      )
    }
    files.write_h5(folder / 'keep' / 'keep.h5', arrays, {})


def draw(
  folder: pathlib.Path,
  fold: int,
  cohort: Cohort,
  outlines_dir: pathlib.Path | None,
  *,
  limit: int | None,
) -> list[str]:
  """Draws the maps of the first `limit` test slides, or of all.

  Each picture, `figures/heat_maps/fold_<i>_<slide_id>.png`, is that of
  `slide_maps.heat_map`, on the absolute scale. Known outlines are drawn.
  Slides without a file, or whose features lack coordinates or the tiles' size,
  have no picture; how many they are is printed. Pictures that are there stay.

  Returns:
    What was wrong with slide files that could not be read.
  """
  drawn, bare, faults = 0, {}, []
  for path in sorted((folder / f'fold_{fold}' / 'attention').glob('*.h5')):
    if drawn == limit:
      break
    target = folder / 'figures' / 'heat_maps' / f'fold_{fold}_{path.stem}.png'
    drawn += 1
    if target.exists():
      continue
    slide_file = cohort.slides.get(path.stem)
    if slide_file is None:
      bare[path.stem] = 'no slide file'
      continue
    outlines = []
    if outlines_dir and (outlines_dir / f'{path.stem}.json').exists():
      outlines = _outlines(outlines_dir / f'{path.stem}.json')
    row = list(cohort.manifest.slide).index(path.stem)
    try:
      drawing = heat_map.draw(
        slide_file,
        tile_scores.read({fold: path}),
        label=cohort.classes[cohort.label[row]],
        outlines=outlines,
      )
    except tile_scores.UnplacedError as e:
      bare[path.stem] = str(e).removeprefix(f'{path}: ')
      continue
    except slides.SlideError as e:
      faults.append(str(e))
      continue
    with replacing(target) as part:
      drawing.savefig(part, dpi=100, format='png')
  if bare and cohort.slides:
    print(
      f'fold {fold}: {len(bare)} test slides have no heat map:'
      f' {next(iter(bare))}, ...: {next(iter(bare.values()))}'
    )
  return faults


def _outlines(path: pathlib.Path) -> list[np.ndarray]:
  """Returns the outer rings of a GeoJSON feature collection, each [K, 2]."""
  features = json.loads(path.read_text())['features']
  return [np.array(f['geometry']['coordinates'][0]) for f in features]
