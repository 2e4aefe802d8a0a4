"""The slides of a results folder: their scores, files and predictions."""

import collections
import dataclasses
import pathlib
import statistics
from typing import Any

from data import slides
from experiments.maps import tile_scores
from experiments.maps.tile_scores import MapError
from experiments.run.options import field
from experiments.run.results import Folder
from experiments.run.start import Source


@dataclasses.dataclass(frozen=True)
class Slides(Source):
  """The run, and which of its slides."""

  fold: int | None = field(
    None, 'The only fold to show. By default the mean of all.', least=0
  )
  slides_dir: pathlib.Path | None = field(
    None, 'Folder of slide files. By default the folder that the run used.'
  )
  outlines_dir: pathlib.Path | None = field(
    None,
    'Folder of known outlines, <slide_id>.json, .geojson or .xml. By default'
    ' the folder outlines beside that of the slides, if there is one.',
  )
  tile_size: float | None = field(
    None,
    'Side of a tile in level-0 pixels, if its features do not state it.',
    least=1,
  )

  def scores(self) -> dict[str, dict[int, pathlib.Path]]:
    """Returns the files of scores by slide and fold; see `tile_scores.find`."""
    return tile_scores.find(self.folder().path, self.fold)

  def files(self) -> dict[str, pathlib.Path]:
    """Returns the slide files by slide id; none if there are none.

    They are in --slides_dir, by default where the run says that they are: its
    own --slides_dir, or the phantom cohort that it was trained on, beside its
    features.

    Raises:
      ResultsError: if the folder is not that of a run.
      data.slides.SlideError: if --slides_dir cannot be used.
    """
    config = self.folder().config()
    folder = self.slides_dir or config.values.get('slides_dir')
    features = config.cohort.get('features_dir')
    own = config.values.get('csv_path') or config.values.get('features_dir')
    if not folder and not own and features:
      beside = pathlib.Path(features).parent / 'slides'
      folder = beside if beside.is_dir() else None
    if not folder:
      return {}
    try:
      return {slides.slide_id(p): p for p in slides.list_slides(folder)}
    except slides.SlideError as e:
      if self.slides_dir:
        raise
      print(
        f'warning: {config.path} says that the slides are in {folder}, but {e}'
        ' Give --slides_dir for pictures.'
      )
      return {}

  def tables(self) -> dict[str, dict[str, Any]]:
    """Returns what the viewer's list has of each slide, see `Server.tables`."""
    return {
      'case': self._column('case_id'),
      'label': self.labels(),
      'prob': self.predictions(),
      'note': self.notes(),
    }

  def labels(self) -> dict[str, str]:
    """Returns the true classes of the slides of the run, if known."""
    return self._column('label')

  def notes(self) -> dict[str, str]:
    """Returns what makes a slide no test of the models, of those it does."""
    notes = {
      'val': tile_scores.VALIDATION,
      'slide': tile_scores.TRAINING,
      'patient': tile_scores.PATIENT,
    }
    found = {}
    for row in self._rows():
      kind = row.get('trained_on') or row.get('split')
      if kind in notes:
        found[row['slide_id']] = notes[kind]
    return found

  def predictions(self) -> dict[str, dict[str, float]]:
    """Returns each slide's mean probability of every class, as tables have it.

    Raises:
      MapError: if a table is damaged.
    """
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    own = f'fold_{self.fold}_'  # In rows that experiments.predict wrote.
    rows = list(self._rows())
    try:
      for row in rows:
        mine = {k.removeprefix(own): v for k, v in row.items()}
        for name in mine:
          if name.startswith('prob_'):
            share = float(mine[name])
            if not 0 <= share <= 1:
              raise ValueError(f'{name} is {share}')
            found[row['slide_id']][name.removeprefix('prob_')].append(share)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
      raise MapError(
        f'{self.folder().path}: a predictions.csv in it is damaged ({e}).'
        ' Remove it and run the command that wrote it again.'
      ) from e
    return {
      slide: {name: statistics.fmean(shares[name]) for name in shares}
      for slide, shares in found.items()
    }

  def _column(self, name: str) -> dict[str, str]:
    """Returns a cell of the row of each slide, of slides that have it."""
    return {r['slide_id']: r[name] for r in self._rows() if r.get(name)}

  def _rows(self) -> list[dict[str, str]]:
    """Returns the rows of evaluated slides, or of those that were predicted."""
    root, fold = self.folder().path, '*' if self.fold is None else self.fold
    # The second is read of a training that tests nothing.
    for part, name in (
      ('test', 'predictions.csv'),
      ('val', 'validation_predictions.csv'),
    ):
      paths = sorted(root.glob(f'fold_{fold}/{name}')) or root.glob(name)
      rows = [row for path in paths for row in Folder(path.parent).read(name)]
      rows = [row for row in rows if row.get('split', part) == part]
      if rows:
        return rows
    return []
