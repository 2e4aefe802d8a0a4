"""Draws the figures of He and Li: curves, numbers of patches, localisation."""

from collections.abc import Mapping, Sequence
import pathlib

from matplotlib import figure
import numpy as np

from data.files import replacing
from data.slides import Slide
from experiments.few_shot_parts import paper, slides
from experiments.few_shot_parts.cohort import Cohort
from experiments.few_shot_parts.scores import Summary
from experiments.few_shot_parts.settings import Setting
from experiments.patches import pictures
from experiments.slide_scores import froc_figure
from kmil_jax import froc

# Of the truth, bool [n], and of the score, [n].
Judged = tuple[np.ndarray, np.ndarray]
_PICTURE = 700  # Pixels of a slide's longer side.


def patch_roc(path: pathlib.Path, found: Mapping[str, Judged]) -> None:
  """Draws the ROC of the test patches, first seed."""
  count = len(next(iter(found.values()))[0])
  title = f'{count} test patches, one training each'
  _save(path, pictures.roc(title, found))


def slide_roc(path: pathlib.Path, found: Mapping[str, Judged]) -> None:
  """Draws the ROC of the test slides, as Figure 2a."""
  count = len(next(iter(found.values()))[0])
  drawing = pictures.roc(f'{count} test slides', found)
  drawing.axes[0].text(
    0.98,
    0.02,
    f'{paper.SOURCE}: AUROC {paper.SLIDE_AUROC:.3f}',
    ha='right',
    va='bottom',
    fontsize=7,
    color='0.4',
  )
  _save(path, drawing)


def froc_curves(path: pathlib.Path, found: Mapping[str, froc.Froc]) -> None:
  """Draws the lesion-level curves, as Figure 2b."""
  froc_figure.draw(path, found)


def counts(
  path: pathlib.Path, rows: Sequence[Setting], found: Mapping[str, Summary]
) -> None:
  """Draws accuracy over the number of tumour patches beside the paper's."""
  drawing = figure.Figure((6.0, 4.2), layout='constrained')
  ax = drawing.subplots()
  places = np.arange(len(rows))
  values = [found[s.name].value['accuracy'] for s in rows]
  ends = np.array([found[s.name].interval('accuracy') for s in rows]).T
  ax.fill_between(places, *ends, color='C0', alpha=0.15, lw=0)
  ax.plot(places, values, 'o-', color='C0', label='here, 95 % interval')
  known = [paper.TABLE_3.get(s.counterpart, np.nan) for s in rows]
  ax.plot(places, known, 's--', color='0.5', label=paper.SOURCE)
  labels = [
    f'{s.tumour}\n({"-" if s.counterpart is None else s.counterpart})'
    for s in rows
  ]
  ax.set_xticks(places, labels)
  ax.set(
    xlabel='tumour patches in training, here (in the paper)',
    ylabel='accuracy of test patches',
    ylim=(min(0.4, np.nanmin(ends, initial=1)), 1.0),
  )
  ax.grid(color='0.92')
  ax.legend(loc='lower right', fontsize=9)
  _save(path, drawing)


def localisation(
  path: pathlib.Path, cohort: Cohort, found: Mapping[str, slides.Found]
) -> None:
  """Draws the first test slide with tumour and its maps, as Figure 3."""
  some = next(iter(found.values()))
  tumour = [s for s, t in zip(some.slide, some.tumour, strict=True) if t]
  if not tumour:
    return
  slide = next(s for s in cohort.slides if s.id == tumour[0])
  with Slide(slide.path, default_mpp=cohort.scale.mpp) as opened:
    width, height = opened.width, opened.height
    picture = opened.thumbnail(opened.mpp * max(width, height) / _PICTURE)
  count = 2 + len(found)
  drawing = figure.Figure(
    (3.2 * count + 0.6, 3.2 * height / width + 0.5), layout='constrained'
  )
  axes = drawing.subplots(1, count)
  titles = [slide.id, 'tumour', *found]
  for ax, title in zip(axes, titles, strict=True):
    ax.set(xlim=(0, width), ylim=(height, 0), aspect='equal')
    ax.set_title(title, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])
  axes[0].imshow(picture, extent=(0, width, height, 0))
  level = 2**cohort.scale.level
  shape = (-(-height // level), -(-width // level))
  mask = cohort.annotations.mask(slide.id, shape, level)
  _lay(axes[1], np.where(mask, 3.0, 0.0), level)
  maps = {n: slides.load_map(f.folder, slide.id) for n, f in found.items()}
  for ax, scores in zip(axes[2:], maps.values(), strict=True):
    shown = _lay(ax, scores, cohort.scale.stride)
    ax.contour(
      *((np.arange(n) + 0.5) * level for n in mask.shape[::-1]),
      mask,
      [0.5],
      colors='black',
      linewidths=1.0,
    )
  drawing.colorbar(
    shown,
    ax=axes[-1],
    fraction=0.05,
    pad=0.02,
    shrink=0.87,
    label='anomaly score',
  )
  _save(path, drawing)


def _lay(ax, scores: np.ndarray, stride: int):
  """Lays a map on an axis of level-0 pixels, glass white."""
  rows, columns = scores.shape
  extent = (0, columns * stride, rows * stride, 0)
  return ax.imshow(
    np.ma.masked_equal(scores, 0),
    'viridis',
    vmin=0,
    vmax=3,
    extent=extent,
    interpolation='nearest',
  )


def _save(path: pathlib.Path, drawing: figure.Figure) -> None:
  with replacing(path) as part:
    drawing.savefig(part, dpi=120, format='png')
