"""Attention of test slides: stored as HDF5, drawn beside the thumbnail."""

import json
import pathlib

import h5py
import jax
import matplotlib
from matplotlib import (
  cm,
  collections as mpl_collections,
  colors,
  figure,
  patches,
)
import numpy as np

from data import atomic, slides
from experiments.cohort import Cohort
from experiments.feed import Feed
from experiments.training import Trained

_ALPHAS = np.linspace(0, 0.7, 256)
_COLOURS = colors.ListedColormap(
  np.c_[
    matplotlib.colormaps['YlGn'](np.linspace(0.3, 0.95, 256))[:, :3], _ALPHAS
  ]
)
_PICTURE = 700  # Pixels of a thumbnail's longer side.


# Compiled once for all folds: a trainer is its own key.
_predict = jax.jit(
  lambda trainer, *args: trainer.predict(*args), static_argnums=0
)


def write(
  folder: pathlib.Path,
  feed: Feed,
  rows: np.ndarray,
  trained: Trained,
  run: int,
) -> None:
  """Stores what one fold's model sees in each of its test slides.

  Writes `attention/<slide_id>.h5` with `coords` [N, 2] (level-0 pixels; if the
  features have any), `attention` [N, A], `instance_prob` [N, C], `kept` [N] and
  the slide's `prob` [C]; for models that choose instances also `keep/keep.h5`
  with bool [N] of every slide of the cohort.

  Args:
    folder: of the fold.
    feed: the cohort.
    rows: the test part, bool [n].
    trained: all runs.
    run: the fold's.
  """
  params = jax.tree.map(lambda x: x[run : run + 1], trained.params)
  bags = np.flatnonzero(rows)
  read = feed.read(feed.bucket(bags), bags[:, None])
  probs = trained.prob['test'][run]
  for bag, x, prob in zip(bags, read, probs, strict=True):
    length, offset = feed.store.length[bag], feed.store.offset[bag]
    kept = np.zeros(x.shape[1], bool)
    kept[:length] = True
    if trained.keep is not None:
      kept[:length] = trained.keep[run, offset : offset + length]
    said = jax.device_get(_predict(trained.trainer, params, x[0], kept))
    arrays = {
      'attention': said.attention[0, :length],
      'instance_prob': np.asarray(
        jax.nn.softmax(said.instance_logits[0, :length])
      ),
      'kept': kept[:length],
      'prob': prob,
    }
    source = feed.cohort.read(bag)
    if source.coords is not None:
      arrays['coords'] = source.coords
    name = feed.cohort.manifest.slide[bag]
    _write_h5(folder / 'attention' / f'{name}.h5', arrays, source.attributes)
  if trained.keep is not None:
    ends = feed.store.offset + feed.store.length
    arrays = {
      name: trained.keep[run, start:end]
      for name, start, end in zip(
        feed.cohort.manifest.slide, feed.store.offset, ends, strict=True
      )
    }
    _write_h5(folder / 'keep' / 'keep.h5', arrays, {})


def draw(
  folder: pathlib.Path,
  fold: int,
  cohort: Cohort,
  outlines_dir: pathlib.Path | None,
  *,
  limit: int | None,
) -> list[str]:
  """Draws the maps of the first `limit` test slides, or of all.

  Each picture, `figures/heat_maps/fold_<i>_<slide_id>.png`, shows the slide,
  the attention for the predicted class and the instances' probability of it;
  tiles that the model did not see are crossed out. Known outlines are drawn.
  Slides without a file, or whose features lack coordinates or the tiles' size,
  have no picture; how many they are is printed. Pictures that are there stay.

  Returns:
    What was wrong with slide files that could not be read.
  """
  drawn, bare, faults = 0, 0, []
  for path in sorted((folder / f'fold_{fold}' / 'attention').glob('*.h5')):
    if drawn == limit:
      break
    target = folder / 'figures' / 'heat_maps' / f'fold_{fold}_{path.stem}.png'
    drawn += 1
    if target.exists():
      continue
    slide_file = cohort.slides.get(path.stem)
    with h5py.File(path) as f:
      arrays = {name: f[name][()] for name in f}
      side = f.attrs.get('patch_size_level0')
    if slide_file is None or 'coords' not in arrays or side is None:
      bare += 1
      continue
    outlines = []
    if outlines_dir and (outlines_dir / f'{path.stem}.json').exists():
      outlines = _outlines(outlines_dir / f'{path.stem}.json')
    row = list(cohort.manifest.slide).index(path.stem)
    label = cohort.classes[cohort.label[row]]
    try:
      drawing = _draw_slide(
        slide_file, arrays, side, outlines, cohort.classes, label
      )
    except slides.SlideError as e:
      faults.append(str(e))
      continue
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(target) as part:
      drawing.savefig(part, dpi=100, format='png')
  if bare and cohort.slides:
    print(
      f'fold {fold}: {bare} test slides have no heat map, for want of a slide'
      ' file, coords or patch_size_level0'
    )
  return faults


def _draw_slide(
  path: pathlib.Path,
  arrays: dict[str, np.ndarray],
  side: float,
  outlines: list[np.ndarray],
  classes: tuple[str, ...],
  label: str,
) -> figure.Figure:
  with slides.Slide(path, default_mpp=1.0) as slide:
    longer = max(slide.width, slide.height)
    picture = slide.thumbnail(slide.mpp * longer / _PICTURE)
    extent = (0, slide.width, slide.height, 0)
  pred = int(arrays['prob'].argmax())
  attention = arrays['attention']
  attention = attention[:, pred if attention.shape[1] > 1 else 0]
  # Times n: 1 is what a mean would give every tile.
  relative = attention * arrays['kept'].sum()
  panels = {
    f'{path.stem}\n{label}, predicted {classes[pred]}'
    f' ({arrays["prob"][pred]:.2f})': None,
    'attention, multiples of the mean': (relative, None),
    f'tile probability of {classes[pred]}': (
      arrays['instance_prob'][:, pred],
      (0, 1),
    ),
  }
  height = 4.4 * picture.shape[0] / picture.shape[1] + 0.7
  drawing = figure.Figure((15, height), layout='constrained')
  for ax, (title, values) in zip(
    drawing.subplots(1, 3), panels.items(), strict=True
  ):
    ax.imshow(picture, extent=extent)
    ax.set_title(title, fontsize=10)
    ax.set_axis_off()
    for outline in outlines:
      ax.add_patch(
        patches.Polygon(outline, fill=False, edgecolor='black', lw=1.2)
      )
    if values is not None:
      _draw_tiles(drawing, ax, arrays, side, *values)
  return drawing


def _draw_tiles(drawing, ax, arrays, side, values, limits) -> None:
  kept = arrays['kept']
  scale = cm.ScalarMappable(
    colors.Normalize(*(limits or (0, values.max()))), _COLOURS
  )
  # Tissue shows through where the value is low.
  ax.add_collection(
    mpl_collections.PatchCollection(
      [patches.Rectangle(xy, side, side) for xy in arrays['coords'][kept]],
      facecolors=scale.to_rgba(values[kept]),
      edgecolors='none',
    )
  )
  drawing.colorbar(scale, ax=ax, shrink=0.7)
  dropped = arrays['coords'][~arrays['kept']] + side / 2
  if len(dropped):
    ax.plot(*dropped.T, 'x', color='white', ms=7, mew=2.5)
    ax.plot(*dropped.T, 'kx', ms=6, mew=1, label='dropped')
    ax.legend(loc='lower right', fontsize=8)


def _outlines(path: pathlib.Path) -> list[np.ndarray]:
  """Returns the outer rings of a GeoJSON feature collection, each [K, 2]."""
  features = json.loads(path.read_text())['features']
  return [np.array(f['geometry']['coordinates'][0]) for f in features]


def _write_h5(
  path: pathlib.Path, arrays: dict[str, np.ndarray], attributes: dict
) -> None:
  with atomic.replacing(path) as part, h5py.File(part, 'w') as f:
    for name, array in arrays.items():
      f[name] = array
    f.attrs.update(attributes)
