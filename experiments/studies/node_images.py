"""Images of lymph nodes: patches, heat maps of votes, outlines and decisions.

What the two networks of `two_step` learn from, and what they find: windows of
40 um, 10 um apart, vote on the pixels they cover (`kmil_jax.heatmap`), and an
image is positive if a pixel has enough votes.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import pathlib
from typing import Any

import contourpy
import numpy as np

from data import labelled_tiles, node_images
from data.files import counted
from data.labelled_tiles import LabelledTiles, TileError
from data.node_images import LABELS, MPP, PARTS, NodeImages
from data.phantom import nodes
from data.tissue import glass
from experiments.evaluation.tables import Table
from experiments.patches import pictures, tiles as patch_tiles
from experiments.patches.study import File, Material, Study, gathers_warnings
from experiments.patches.training import Trained
from experiments.run import phantoms, progress, results
from experiments.run.options import field, free
from experiments.studies import two_step
from experiments.studies.two_step import CLASSES, ONE, RAISED, TWO, Design
from kmil_jax import heatmap
from kmil_jax.heatmap import FIRES, STRIDE, WINDOW

VOTES = (WINDOW // STRIDE) ** 2  # Of a pixel; a score is a number of them.
_LATTICE = 4  # Patches lie on every fourth pixel: fewer places to remember.
_COARSE = 20  # Stride, in pixels, that false positives are gathered with.
_DECISIONS = ('development_images.csv', 'images.csv')  # By part.
_STEPS = ('primary', 'secondary')


@dataclasses.dataclass(frozen=True)
class Images:
  """Images of lymph nodes with masks of their tumour."""

  images_dir: pathlib.Path | None = free(
    None,
    'Folder of images, <image_id>.png or .tif. By default a phantom is'
    ' rendered.',
    only={'tiles_zip': False, 'masks_dir': True, 'images_csv': True},
  )
  masks_dir: pathlib.Path | None = free(
    None,
    'Folder of masks of the same names and sizes, not 0 on tumour.',
    only={'images_dir': True},
  )
  images_csv: pathlib.Path | None = free(
    None,
    'Table of these images, with the columns image_id,patient_id,part'
    ' (development or test) and, where negative images have no mask, label'
    ' (negative or positive).',
    only={'images_dir': True},
  )
  image_mpp: float = field(
    MPP,
    'Micrometres per pixel of the images.',
    least=0.05,
    only={'images_dir': True},
  )
  patches: int | None = field(
    None,
    'How many patches of each class to cut out, to train and validate with. By'
    ' default 16000, on the phantom 300.',
    least=10,
    only={'tiles_zip': False},
  )
  least_tumour: int | None = field(
    None,
    'A window is one of tumour if it has at least this area of it, in square'
    ' micrometres. Windows with some, but less, are not used. By default 100,'
    ' about a cell; on the phantom, whose outlines hold stroma, 400.',
    least=1,
    only={'tiles_zip': False},
  )
  split_patches: str = field(
    'patient',
    'Keep whole patients, or only whole patches, in one part. patient avoids'
    ' leakage; patch repeats the paper.',
    choices=('patient', 'patch'),
    only={'tiles_zip': False},
  )
  pictures: int = free(
    8,
    'Number of test images to draw, half of them positive.',
    least=0,
    only={'tiles_zip': False},
  )


@dataclasses.dataclass(frozen=True)
class Nodes(Material):
  """Images and patches of some; see `two_step.stages`."""

  images: NodeImages
  parts: Sequence[LabelledTiles]  # of the development part
  split_by: str
  least: int  # pixels of tumour that make a window one of tumour
  pictures: int

  @property
  def inputs(self) -> dict[str, str]:
    images = self.images
    paths = filter(None, (*images.image_paths, *images.mask_paths))
    columns = images.id, images.patient, images.test, images.positive
    about = [column.tolist() for column in columns]
    return {'images_sha256': two_step.sha256(paths, about)}

  def tables(self) -> Iterator[Table]:
    sets = zip(('training', 'validation'), self.parts, strict=True)
    yield patch_tiles.counts(dict(sets), 'Patches')

  def false_positives(self, primary: Trained) -> LabelledTiles:
    images, where = self.images, [np.empty((0, 3), int)]
    negative = np.flatnonzero(~images.test & ~images.positive)
    for row in progress.over(negative, 'false positives', unit='image'):
      image, mask = images.read(row)
      _, tissue = windows(image, mask, _COARSE)
      (prob,) = scan(image, [primary], tissue, _COARSE)
      yx = np.argwhere(prob >= FIRES) * _COARSE
      where.append(np.c_[np.full(len(yx), row), yx])
    where = np.concatenate(where)
    return cut(images, where, np.zeros(len(where), int))

  def decisions(
    self, study: Study, networks: Sequence[Trained]
  ) -> Iterator[Table | File | str]:
    """Yields Table 3 and Figure 4, windows, outlines and pictures."""
    images, rows = self.images, range(len(self.images))
    probs = [
      self._scanned(study.folder, row, networks)
      for row in progress.over(rows, 'heat maps', unit='image')
    ]
    scores = {
      rule: np.array([most_votes(maps[step]) for maps in probs])
      for step, rule in enumerate((ONE, TWO)[: len(networks)])
    }
    bars, tables = self._table_3(scores)
    one, (*_, final), (*_, bar) = scores[ONE], scores.values(), bars.values()
    yield from tables
    yield self._windows_table(probs)
    parts = dict(zip(PARTS, (~images.test, images.test), strict=True))
    pairs = {k: (final[p], images.positive[p]) for k, p in parts.items()}
    yield File('figures/scores.png', score_figure(pairs, bar))
    part = np.take(PARTS, images.test)
    label, decision = np.take(LABELS, [images.positive, final >= bar])
    header = 'image_id,patient_id,part,label,score_one_step,score,decision'
    columns = images.id, images.patient, part, label, one / VOTES, final / VOTES
    lines = [*zip(*columns, decision, strict=True)]
    for name, some in zip(_DECISIONS, parts.values(), strict=True):
      yield File(name, [header.split(','), *itertools.compress(lines, some)])
    drawn = set()
    for wanted in (True, False):
      some = np.flatnonzero(images.test & (images.positive == wanted))
      order = some[np.argsort(-one[some], kind='stable')]
      drawn |= set(order[: (self.pictures + wanted) // 2].tolist())
    for row in progress.over(rows, 'outlines', unit='image'):
      image, mask = images.read(row)
      maps, name = {}, images.id[row]
      for (rule, votes), prob in zip(scores.items(), probs[row], strict=True):
        heat = heatmap.votes(prob >= FIRES, image.shape[:2])
        lesions = outlines(heat >= (bars[rule] - 0.5) / VOTES)
        maps[f'{rule}, score {votes[row] / VOTES:.4f}'] = heat, lesions
      yield File(f'outlines/{name}.json', geojson(lesions, MPP / images.mpp))
      if row in drawn:
        verdict = 'right' if decision[row] == label[row] else 'WRONG'
        drawing = pictures.overlay(
          f'{name} | truth {label[row]} | predicted {decision[row]}'
          f' | {verdict}',
          image,
          maps,
          label='share of votes for tumour',
          truth=outlines(mask),
          mpp=MPP,
        )
        yield File(f'figures/{name}.png', drawing)

  def _scanned(
    self, folder: results.Folder, row: int, networks: Sequence[Trained]
  ) -> Sequence[np.ndarray]:
    """Scans an image, or loads the maps of an earlier scan."""
    name = f'maps/{self.images.id[row]}.npz'
    if folder.has(name):
      maps = results.read_arrays(folder.at(name))
      return [maps[step] for step in _STEPS[: len(networks)]]
    image, mask = self.images.read(row)
    maps = scan(image, networks, windows(image, mask, STRIDE)[1])
    folder.write(name, dict(zip(_STEPS, maps, strict=False)))
    return maps

  def _table_3(
    self, scores: Mapping[str, np.ndarray]
  ) -> tuple[dict[str, int], list[Table]]:
    """Returns the thresholds of rules, in votes, and Table 3 by part.

    An image is positive if a pixel of its map reaches the threshold: the best
    of the development images.
    """
    images, rows = self.images, {'test': [], 'development': []}
    test, positive = images.test, images.positive

    def add(rule, votes, bar, *parts):
      for part in parts:
        some = test if part == 'test' else ~test
        about = votes[some] >= bar, positive[some], images.patient[some]
        rows[part].append(((rule, part), *about, (bar / VOTES, None)))

    bars = {k: threshold(v[~test], positive[~test]) for k, v in scores.items()}
    for rule, votes in scores.items():
      add(rule, votes, bars[rule], *PARTS)
    if TWO in scores:
      hits = (scores[TWO] >= bars[TWO])[test & positive].sum()
      raised = two_step.raised_bar(scores[ONE][test], positive[test], hits)
      # One vote more than there are: no image.
      add(RAISED, scores[ONE], min(raised, VOTES + 1), 'test')
    patients = {
      part: len(set(images.patient[some]))
      for part, some in (('test', test), ('development', ~test))
    }
    return bars, [
      two_step.decision_table(
        f'table_3{"" if part == "test" else "_development"}',
        f'Table 3. Images of the {part} part,'
        f' {counted(patients[part], "patient")}.'
        ' Positive: a pixel has as many votes as the threshold, which is the'
        ' best of the development images',
        ('rule', 'part'),
        {'threshold': '.4f'},
        some,
      )
      for part, some in rows.items()
    ]

  def _windows_table(self, probs: Sequence[Sequence[np.ndarray]]) -> Table:
    """Compares rules by the test images' windows on tissue."""
    images, by_image = self.images, []
    for row in np.flatnonzero(images.test):
      tumour, tissue = windows(*images.read(row), STRIDE)
      known = tissue & ((tumour == 0) | (tumour >= self.least))
      about = tumour[known] > 0, images.patient[row], images.positive[row]
      maps = (prob[known] for prob in probs[row])
      by_image.append(np.broadcast_arrays(*about, *maps))
    columns = map(np.concatenate, zip(*by_image, strict=True))
    tumour, patient, positive, *joined = columns
    negatives = (images.test & ~images.positive).sum()
    rows = []
    for rule, decision in two_step.rules(joined, tumour).items():
      wrong = int(decision[~tumour].sum())
      per_image = decision[~positive].sum() / negatives
      first = (wrong, None), (per_image, None)
      rows.append(((rule,), decision, tumour, patient, *first))
    return two_step.decision_table(
      'windows',
      'Windows of the test images, on tissue; false positives of all images,'
      ' and those of a negative image',
      ('rule',),
      {'false positives': 'd', 'per negative image': '.1f'},
      rows,
    )


@gathers_warnings
def open_nodes(
  files: Images, design: Design, seed: int, cache_dir: pathlib.Path
) -> Nodes:
  """Opens the user's images, or the phantom's, and draws patches of them.

  Raises:
    ImageError: as `node_images.load`.
    TileError: if the images do not yield the patches, or too few patients do.
  """
  paths = files.images_dir, files.masks_dir, files.images_csv
  if files.images_dir is None:
    names = 'images', 'masks', 'images.csv'
    about = 'node_images', ('data/phantom/*.py',), nodes.make, cache_dir
    root = phantoms.made(*about, last=names[-1], unit='image')
    paths = [root / name for name in names]
  images = node_images.load(*paths, mpp=files.image_mpp)
  patches = draw(images, design.patches, seed, design.least_tumour)
  by = {'patient': 'group', 'patch': 'tile'}[files.split_patches]
  split = patch_tiles.split(patches, (0.7, 0.3, 0.0), seed=seed, by=by)
  is_phantom = files.images_dir is None
  phantom = ', a phantom: figures say nothing about patients' * is_phantom
  return Nodes(
    images,
    [patches.take(rows) for rows in split[:2]],
    files.split_patches,
    design.least_tumour,
    files.pictures,
    note=f'{counted(len(images), "image")} of'
    f' {counted(len(set(images.patient)), "patient")},'
    f' {images.test.sum()} to test{phantom}',
    is_phantom=is_phantom,
  )


def windows(
  image: np.ndarray, mask: np.ndarray, stride: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what the windows of an image hold, [h, w] each.

  Args:
    image: uint8 [H, W, 3] at 1 um a pixel.
    mask: True on tumour, bool [H, W].
    stride: from one window to the next.

  Returns:
    Pixels of tumour, and whether there is tissue: others are never looked at.
  """
  tumour = heatmap.sums(mask, WINDOW)[::stride, ::stride]
  return tumour, heatmap.on_tissue(~glass(image, MPP), stride=stride)


def draw(
  images: NodeImages, count: int, seed: int, least: int
) -> LabelledTiles:
  """Draws patches of both classes from the development images.

  As in the paper a window with a single tumour cell is one of tumour; with less
  than that it belongs to neither class. All windows of a class on tissue, on a
  lattice of 4 pixels, are equally likely, and none is drawn twice. Non-tumour
  is that of negative and of positive images.

  Args:
    images: of both parts; those of the test part are not touched.
    count: patches of each class; where a class has fewer windows, both get that
      many.
    seed: of the draw.
    least: pixels of tumour that make a window one of tumour.

  Returns:
    Tiles of `CLASSES` grouped by patient; ids are <image>_<y>_<x>, `xy` the
    first pixel.

  Raises:
    TileError: if a class has no window.
  """
  windows_of = [[], []]  # Per class a row per window: image, y, x.
  for row in np.flatnonzero(~images.test):
    tumour, tissue = windows(*images.read(row), _LATTICE)
    inside = tumour == 0, tumour >= least
    for rows, where in zip(windows_of, inside, strict=True):
      yx = np.argwhere(where & tissue) * _LATTICE
      rows.append(np.c_[np.full(len(yx), row), yx])
  windows_of = [np.concatenate(rows) for rows in windows_of]
  for name, rows in zip(CLASSES, windows_of, strict=True):
    if not len(rows):
      raise TileError(
        f'no window of {WINDOW} um in the development images is {name} (with'
        f' {least} um2 of the mask, on tissue). Look at the masks.'
      )
  count = min(count, *map(len, windows_of))
  rng = np.random.default_rng([seed, 1])
  chosen = [
    rows[np.sort(rng.choice(len(rows), count, replace=False))]
    for rows in windows_of
  ]
  return cut(images, np.concatenate(chosen), np.repeat([0, 1], count))


def cut(
  images: NodeImages, where: np.ndarray, label: np.ndarray
) -> LabelledTiles:
  """Cuts patches out of images.

  Args:
    images: the images.
    where: row of the image, y and x of the first pixel, int [n, 3].
    label: place in `CLASSES`, [n].
  """
  pixels = np.empty((len(where), WINDOW, WINDOW, 3), np.uint8)
  for row in np.unique(where[:, 0]):
    image, _ = images.read(row)
    for i in np.flatnonzero(where[:, 0] == row):
      pixels[i] = _window(image, where[:, 1:], i)
  return labelled_tiles.from_arrays(
    pixels,
    label,
    images.patient[where[:, 0]],
    CLASSES,
    ids=[f'{images.id[row]}_{y}_{x}' for row, y, x in where],
  )


def scan(
  image: np.ndarray,
  networks: Sequence[Trained],
  seen: np.ndarray,
  stride: int = STRIDE,
) -> np.ndarray:
  """Evaluates windows of an image, each once; see `two_step.evaluate`.

  Args:
    image: uint8 [H, W, 3].
    networks: one or two.
    seen: which windows to evaluate, bool [h, w] of `heatmap.on_tissue`.
    stride: from one window to the next, in pixels.

  Returns:
    Probabilities of tumour by each, float32 [networks, h, w]; NaN where it was
    not evaluated.
  """
  corners = np.argwhere(seen) * stride
  tiles = LabelledTiles(
    id=np.arange(len(corners)).astype(str),
    label=np.zeros(len(corners), np.int32),
    group=np.zeros(len(corners), str),
    classes=CLASSES,
    read=functools.partial(_window, image, corners),
    size=WINDOW,
  )
  maps = np.full((len(networks), *seen.shape), np.nan, np.float32)
  maps[:, seen] = two_step.evaluate(networks, tiles)
  return maps


def _window(image: np.ndarray, corners: np.ndarray, i: int) -> np.ndarray:
  y, x = corners[i]
  return image[y : y + WINDOW, x : x + WINDOW]


def most_votes(prob: np.ndarray) -> int:
  """Returns the score of an image: the most votes that a pixel of it has.

  Args:
    prob: of its windows, [h, w], by the last network.
  """
  shape = tuple((n - 1) * STRIDE + WINDOW for n in prob.shape)
  return round(float(heatmap.votes(prob >= FIRES, shape).max()) * VOTES)


def threshold(score: np.ndarray, positive: np.ndarray) -> int:
  """Returns the votes from which an image is positive.

  The smallest number, from 1 to 16, with the highest mean of sensitivity and
  specificity. In the paper, where positive images have 15 or more and negative
  ones fewer than 11, that is 11: its 0.6875.

  Args:
    score: of the development images alone, int [n].
    positive: the truth, bool [n].
  """
  votes = np.arange(1, VOTES + 1)
  decision = score >= votes[:, None]
  # In whole numbers: rounded shares would not tie.
  weight = np.where(positive, (~positive).sum(), positive.sum())
  balanced = (decision == positive) @ weight
  return int(votes[balanced.argmax()])


def outlines(inside: np.ndarray) -> pictures.Polygons:
  """Returns the areas of a mask.

  Args:
    inside: bool [H, W].

  Returns:
    A polygon per area: its outer ring, then its holes, each [K, 2] of (x, y) in
    pixels, closed. A pixel's middle lies at a half, so that an area that fills
    the image runs along its border, from 0 to H and W.
  """
  # Areas must close: beyond the border there is nothing.
  generator = contourpy.contour_generator(
    z=np.pad(inside.astype(float), 1),
    name='serial',
    fill_type=contourpy.FillType.OuterOffset,
  )
  return [
    [points[a:b] - 0.5 for a, b in itertools.pairwise(ends)]
    for points, ends in zip(*generator.filled(0.5, np.inf), strict=True)
  ]


def geojson(polygons: pictures.Polygons, scale: float) -> str:
  """Returns lesions as a GeoJSON feature collection.

  Args:
    polygons: as `outlines` returns them.
    scale: pixels of the image's file per pixel of the map.
  """
  features = [
    {
      'type': 'Feature',
      'geometry': {
        'type': 'Polygon',
        'coordinates': [(scale * ring).round(1).tolist() for ring in rings],
      },
      'properties': {'classification': {'name': 'tumour'}},
    }
    for rings in polygons
  ]
  return json.dumps({'type': 'FeatureCollection', 'features': features})


def score_figure(
  parts: Mapping[str, tuple[np.ndarray, np.ndarray]], bar: int
) -> Any:
  """Draws the paper's Figure 4: scores of negative and positive images.

  Args:
    parts: votes, int [n], and the truth, bool [n], of each part.
    bar: votes from which an image is positive.
  """
  from matplotlib import figure  # Takes half a second.

  drawing = figure.Figure((4.2 * len(parts), 4.2), layout='constrained')
  panels = drawing.subplots(1, len(parts), sharey=True, squeeze=False)[0]
  for ax, (name, (votes, positive)) in zip(panels, parts.items(), strict=True):
    for label, colour in ((0, 'C0'), (1, 'C3')):
      values = votes[positive == label]
      for value in np.unique(values):  # Equal ones side by side.
        n = (values == value).sum()
        place = min(0.05, 0.8 / n) * (np.arange(n) - (n - 1) / 2)
        height = np.full(n, value / VOTES)
        ax.plot(label + place, height, 'o', color=colour, ms=5, alpha=0.7)
    ax.axhline((bar - 0.5) / VOTES, color='grey', ls='--', lw=1)
    ax.set_title(f'{name}: positive from {bar / VOTES:.4f}')
    counts = (~positive).sum(), positive.sum()
    ax.set_xticks(
      [0, 1], [f'{k}\n{n}' for k, n in zip(LABELS, counts, strict=True)]
    )
    ax.set(xlim=(-0.5, 1.5), ylim=(-0.05, 1.05))
    ax.grid(axis='y', color='0.92')
  panels[0].set_ylabel('score: highest share of votes in the image')
  return drawing
