"""Trains and tries a two-step detector on node images, stage by stage."""

from collections.abc import Sequence
import dataclasses
import pathlib

import jax
import numpy as np

from data import labelled_tiles
from data.labelled_tiles import LabelledTiles
from data.node_images import NodeImages
from experiments import (
  files,
  two_step_maps,
  two_step_patches,
  two_step_report,
  two_step_scores as scores,
  two_step_tables,
  two_step_timing,
)
from experiments.cutter import Cutter
from experiments.paper_text import Table
from experiments.patches import training
from experiments.patches.training import Trained
from experiments.run import progress, results
from kmil_jax.heatmap import STRIDE
from kmil_jax.types import PatchRecipe

_LEAST = 20  # False positives below which there is nothing to learn.
# Of the learning rate, for a secondary that starts from the primary's weights:
# at the full rate it forgets them before it has learned from so few tiles.
_FINE_TUNE = 0.3


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a run is asked for; see the flags of `experiments.two_step`."""

  recipe: PatchRecipe
  networks: tuple[str, ...]
  primary: str | None
  secondary: str | None
  patches: int
  least_tumour: int  # pixels, see `two_step_patches.places`
  split: str
  seed: int
  weights: dict[str, str]  # files to start from, by network
  freeze: str
  precision: str
  tensorboard: bool
  pictures: int


def train(
  folder: pathlib.Path,
  model: str,
  parts: tuple[LabelledTiles, LabelledTiles],
  settings: Settings,
  weights: str | None,
  rate: float = 1.0,
) -> Trained:
  """Trains one network from `weights`, or loads it; `rate` is a factor."""
  recipe = settings.recipe
  return training.train(
    results.Folder(folder.parent),
    folder.name,
    model=model,
    train=parts[0],
    val=parts[1],
    recipe=dataclasses.replace(
      recipe, learning_rate=rate * recipe.learning_rate
    ),
    options=training.Training(
      weights=weights,
      freeze=settings.freeze,
      precision=settings.precision,
      tensorboard=settings.tensorboard,
    ),
    seed=settings.seed,
  )


def primaries(
  folder: pathlib.Path,
  parts: tuple[LabelledTiles, LabelledTiles],
  settings: Settings,
) -> tuple[str, dict[str, Trained]]:
  """Trains the networks to compare.

  Returns:
    The name of the one to go on with, which is the most accurate on the
    validation tiles unless one is asked for; and all of them.
  """
  found = {
    name: train(
      folder / f'primary_{name}',
      name,
      parts,
      settings,
      settings.weights.get(name),
    )
    for name in settings.networks
  }
  best = max(found, key=lambda name: found[name].kept['val_accuracy'])
  return settings.primary or best, found


def networks_table(found: dict[str, Trained], split: str) -> Table:
  """Returns Table 2."""
  return two_step_tables.networks(
    {
      name: (
        sum(x.size for x in jax.tree.leaves(t.variables['params'])),
        t.kept['val_accuracy'],
        t.kept['val_auroc'],
      )
      for name, t in found.items()
    },
    split,
  )


def secondary(
  folder: pathlib.Path,
  false_positives: LabelledTiles,
  parts: tuple[LabelledTiles, LabelledTiles],
  primary: str,
  settings: Settings,
  source: str,
) -> tuple[Trained | None, Table | None]:
  """Trains the second network on false positives against tumour.

  By default it is of the primary's kind, as in the paper. Without weights of
  another origin it starts from those of the primary of its kind, if there is
  one, at 0.3 of the learning rate: false positives are few.

  Args:
    folder: of the results.
    false_positives: what the first network takes for tumour and is not.
    parts: training and validation tiles of the first network; as many tumour
      patches are drawn of them, and each stays in its part.
    primary: name of the first network.
    settings: of the run.
    source: says where the false positives are from.

  Returns:
    The network and its table; None where the primary makes too few mistakes to
    learn from, which is said.
  """
  count = len(false_positives)
  print(f'false positives of the primary network: {count}', flush=True)
  if count < _LEAST:
    print(
      f'fewer than {_LEAST}: there is no second step, and the tables are of one'
    )
    return None, None
  tiles = two_step_patches.matched(
    false_positives, labelled_tiles.concatenate(parts), settings.seed
  )
  parts = two_step_patches.split_like(
    tiles, parts[0], settings.split, settings.seed
  )
  name = settings.secondary or primary
  weights, rate = settings.weights.get(name), 1.0
  if weights is None and name in settings.networks:
    rate = _FINE_TUNE
    weights = str(folder / f'primary_{name}' / 'model.safetensors')
  trained = train(
    folder / f'secondary_{name}', name, parts, settings, weights, rate
  )
  row = trained.kept
  return trained, two_step_tables.secondary(
    name, count, row['val_accuracy'], row['val_auroc'], source
  )


def patches(
  images: NodeImages, settings: Settings
) -> tuple[LabelledTiles, LabelledTiles]:
  """Returns the patches to train and to validate the first network with.

  Raises:
    TileError: if the images do not yield them, or too few patients do.
  """
  found = two_step_patches.draw(
    images, settings.patches, settings.seed, settings.least_tumour
  )
  count = np.bincount(found.label)
  print(f'patches: {count[0]} non-tumour, {count[1]} tumour', flush=True)
  return two_step_patches.split(found, settings.split, settings.seed)


def run(folder: pathlib.Path, images: NodeImages, settings: Settings) -> None:
  """Runs all stages; those whose files are there are not done again."""
  parts = patches(images, settings)
  name, found = primaries(folder, parts, settings)
  show(folder, networks_table(found, settings.split))
  print(f'primary network: {name}', flush=True)
  first = two_step_maps.network(found[name])
  mistakes = two_step_maps.false_positives(images, first)
  trained, table = secondary(
    folder,
    mistakes,
    parts,
    name,
    settings,
    'False positives are gathered from the negative development images, windows'
    ' 20 um apart.',
  )
  networks = [first]
  if table is not None:
    show(folder, table)
    networks.append(two_step_maps.network(trained))
  windows = two_step_maps.scan(folder / 'maps', images, *networks)
  _report(folder, images, windows, settings)
  _time(images, networks)
  print(f'results: {folder}')
  progress.raise_if_diverged(progress.below(folder))


def _report(
  folder: pathlib.Path,
  images: NodeImages,
  windows: Sequence,
  settings: Settings,
) -> None:
  """Writes tables, outlines and pictures of the scanned images."""
  one = scores.image_scores([scores.one_step(w) for w in windows])
  final = scores.image_scores(windows)
  two_steps = windows[0].secondary is not None
  table, threshold = two_step_report.decisions(
    images, one, final if two_steps else None
  )
  show(folder, table)
  if two_steps:
    rows = np.flatnonzero(images.test)
    truth = [
      two_step_patches.places(*images.read(row), STRIDE, settings.least_tumour)
      for row in rows
    ]
    compared = scores.window_shares(
      images, rows, [windows[r] for r in rows], truth
    )
    show(folder, two_step_tables.windows(compared))
  two_step_report.write_scores(folder, images, one, final, threshold)
  two_step_report.draw(
    folder, images, windows, one, final, threshold, settings.pictures
  )


def _time(images: NodeImages, networks: Sequence[Cutter]) -> None:
  """Prints how long a map takes, beside the loop over windows."""
  image, _ = images.read(int(np.argmax(images.positive)))
  found = two_step_timing.compare(image, networks)
  print(
    f'time of a heat map: {found["map"]:.1f} s per megapixel; window by window'
    f' {found["naive"]:.1f} s, {found["ratio"]:.1f} times as long (median of'
    f' rounds in turns; the maps differ by {found["difference"]:.4f} at most)'
  )


def show(folder: pathlib.Path, table: Table) -> None:
  """Prints a table and writes it as Markdown and CSV."""
  text = table.markdown() + '\n'
  files.write_text(folder / f'{table.name}.md', text)
  files.write_csv(folder / f'{table.name}.csv', table.rows())
  print(f'\n{text}', flush=True)
