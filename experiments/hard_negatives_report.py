"""Runs the tables of the study of hard negatives, prints and writes them."""

from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib

import numpy as np

from experiments import (
  files,
  hard_negatives_data as materials,
  hard_negatives_paper as paper,
  hard_negatives_tables as tables,
)
from experiments.hard_negatives_data import Material
from experiments.hard_negatives_runs import Study
from experiments.hard_negatives_settings import (
  POSITIVE,
  RANDOM,
  WEAK,
  Setting,
)
from kmil_jax import parallel
from kmil_jax.types import PatchRecipe

_WRONG = (
  'WRONG ON PURPOSE: --protocol=original follows the released code of Lee et'
  ' al., whose search fails and chooses at random, and which splits annotated'
  ' and chosen tiles together: strong models are tested on easy negatives of'
  ' the pool, and on other slides than weak ones. These figures measure the'
  ' leak, not the method; use --protocol=intended.'
)
_PHANTOM = (
  'What the phantom shows: that mining finds what a weak model is mistaken'
  ' about where a pool holds it, and what that is worth. It does not show how'
  ' common such tiles are in tissue, nor any figure of the paper.'
)


class Report:
  """The text of a study, table by table.

  Args:
    folder: of the experiment.
    study: its trainings.
    material: its tiles.
    seeds: of the models of each kind.
    metric: by which negatives are chosen in Tables 3 to 5.
    alpha: negatives per false positive but in Table 3.
    leaking: whether the study leaks, as the released code.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    study: Study,
    material: Material,
    *,
    seeds: Sequence[int],
    metric: str,
    alpha: int,
    leaking: bool,
  ):
    self._folder, self._study, self._material = folder, study, material
    self._seeds, self._metric, self._alpha = seeds, metric, alpha
    self._leaking = leaking
    self._text: list[str] = []
    self._models: dict[Setting, dict[str, float]] = {}

  def begin(
    self, recipe: PatchRecipe, fractions: tuple[float, float, float]
  ) -> None:
    """Says what is trained, and how that differs from the paper."""
    if self._leaking:
      self._say(_WRONG)
    self._say(self._material.note)
    parts = [
      f'{name} {len(part)} ({int((part.label == POSITIVE).sum())} positive,'
      f' {len(set(part.group))} patients or slides)'
      for name, part in (
        ('train', self._study.train),
        ('val', self._study.val),
        ('test', self._study.test),
      )
    ]
    self._say(f'parts: {", ".join(parts)}; pool {len(self._study.pool)}')
    here = dataclasses.asdict(recipe) | {
      'fractions': fractions,
      'alpha': self._alpha,
      'tile': self._material.annotated.size,
    }
    there = dataclasses.asdict(paper.RECIPE) | {
      'fractions': paper.FRACTIONS,
      'alpha': paper.ALPHA,
      'tile': paper.TILE,
    }
    differ = [
      f'{name} {here[name]} ({there[name]})'
      for name in here
      if here[name] != there[name]
    ]
    if differ:
      self._say(f'other than in the paper, here (there): {", ".join(differ)}')

  def table(self, number: int) -> None:
    """Trains the models of a table and prints it."""
    rows = tables.rows(
      number,
      self._seeds,
      metric=self._metric,
      alpha=self._alpha,
      leaking=self._leaking,
    )
    # Seed by seed, so that weak models come before those they mine for.
    for seeds in zip(*(row.settings for row in rows), strict=True):
      for setting in seeds:
        self._run(setting)
    found = [(row, [self._models[s] for s in row.settings]) for row in rows]
    title = tables.TITLES[number] + ' (LEAKING)' * self._leaking
    self._say('\n' + tables.markdown(title, found))
    if number == 2 and not self._leaking:
      self._margins()

  def end(self) -> None:
    """Prints notes and writes tables.md, models.csv and summary.json."""
    tested = tables.LEAKING_NOTE if self._leaking else tables.TESTED_NOTE
    self._say(f'\n- {tested}\n- {tables.PAPER_NOTE}')
    for note in self._study.notes:
      self._say(f'- {note}')
    if self._material.hard:
      self._say(f'- {tables.HARD_NOTE}\n- {_PHANTOM}')
    if self._leaking:
      self._say(_WRONG)
    if not parallel.is_first():
      return
    files.write_text(self._folder / 'tables.md', '\n'.join(self._text) + '\n')
    names = [field.name for field in dataclasses.fields(Setting)]
    lines = [[*names, *next(iter(self._models.values()))]]
    for setting, values in self._models.items():
      lines.append([getattr(setting, name) for name in names])
      lines[-1] += [
        '' if math.isnan(v) else f'{v:.6g}' for v in values.values()
      ]
    files.write_csv(self._folder / 'models.csv', lines)
    defined = lambda v: None if math.isnan(v) else v
    summary = [
      dataclasses.asdict(setting)
      | {name: defined(v) for name, v in values.items()}
      for setting, values in self._models.items()
    ]
    text = json.dumps(summary, indent=2, allow_nan=False)
    files.write_text(self._folder / 'summary.json', text + '\n')

  def draw(self) -> None:
    """Draws the first models of the metric, if any tile was mined."""
    setting = Setting(self._seeds[0], self._metric, self._alpha)
    if not self._study.outcome(setting).mined:
      return
    # In every process of a pod: models are loaded together.
    models = [self._study.model(s) for s in (setting.weak(), setting)]
    if parallel.is_first():
      from experiments import hard_negatives_figures

      folder = self._folder / 'figures'
      names = hard_negatives_figures.draw(folder, self._study, setting, *models)
      print(f'{folder}: {", ".join(names)}', flush=True)

  def _run(self, setting: Setting) -> None:
    """Trains a model, and says in a line what it was trained on."""
    found = self._study.outcome(setting)
    values = tables.scores(found, self._hard(found.id))
    if setting in self._models:
      return
    count = {
      'false_positives': found.false_positives,
      'mined': len(found.mined),
      'mined_hard': float('nan'),
      'leaked_val': found.leaked[0],
      'leaked_test': found.leaked[1],
    }
    line = f'{setting.path()}: AUROC {values["auroc"]:.4f}'
    if setting.choice != WEAK:
      line += (
        f'; {found.false_positives} false positives, {len(found.mined)} tiles'
        ' of the pool'
      )
      if self._material.hard and found.mined:
        count['mined_hard'] = self._hard(found.mined).mean()
        line += f', {100 * count["mined_hard"]:.0f} % of them hard'
      if self._leaking:
        ratio = (found.label != POSITIVE).sum() / (
          found.label == POSITIVE
        ).sum()
        line += (
          f'; LEAKED: {found.leaked[1]} into the test part, now of {ratio:.2f}'
          f' negatives per positive, {found.leaked[0]} into validation'
        )
    if parallel.is_first():
      print(line, flush=True)
    self._models[setting] = values | count

  def _margins(self) -> None:
    """Compares strong models with the control and the weak ones."""
    outcomes = lambda **k: [
      self._study.outcome(Setting(seed, **k)) for seed in self._seeds
    ]
    strong = outcomes(choice=self._metric, alpha=self._alpha)
    hard = self._hard(strong[0].id)
    for name, other in (
      ('random negatives', outcomes(choice=RANDOM, alpha=self._alpha)),
      ('the weak model', outcomes()),
    ):
      self._say(f'\nmined by {self._metric} minus {name}:')
      for line in tables.margin(other, strong, hard):
        self._say(f'  {line}')

  def _hard(self, ids: Sequence[str]) -> np.ndarray:
    return materials.hard_rows(self._material, ids)

  def _say(self, text: str) -> None:
    self._text.append(text)
    if parallel.is_first():
      print(text, flush=True)
