"""Finds the slide files and the true labels behind a results folder."""

import csv
import json
import pathlib

from data import slides
from experiments.slide_maps.tile_scores import MapError


def slide_files(
  run: pathlib.Path, slides_dir: str | None
) -> dict[str, pathlib.Path]:
  """Returns the slide files of a run by slide id; none if it has none.

  Args:
    run: the results folder.
    slides_dir: where the slides are; by default where the run says that they
      are: its own --slides_dir, or the phantom cohort that it was trained on,
      beside its features.

  Raises:
    MapError: if the folder is not that of a run.
    data.slides.SlideError: if the folder of slides cannot be used.
  """
  config = run / 'config.json'
  if not config.exists():
    raise MapError(
      f'{config}: no such file; give --run the folder that a run wrote, like'
      ' results/kmil_origin_s2023'
    )
  try:
    record = json.loads(config.read_text(encoding='utf-8'))
    # Version 1 of config.json calls the options flags.
    said = record['options' if 'version' in record else 'flags']
    features = record.get('cohort', {})
  except (ValueError, KeyError, TypeError) as e:
    raise MapError(f'{config}: not the record of a run ({e!r})') from e
  folder = slides_dir or said.get('slides_dir')
  own = said.get('csv_path') or said.get('features_dir')
  if not folder and not own and 'features_dir' in features:
    beside = pathlib.Path(features['features_dir']).parent / 'slides'
    folder = beside if beside.is_dir() else None
  if not slides_dir and folder and not pathlib.Path(folder).is_dir():
    print(
      f'warning: {config} says that the slides are in {folder}, which is not'
      ' here; give --slides_dir for what shows them'
    )
    return {}
  if not folder:
    return {}
  return {slides.slide_id(p): p for p in slides.list_slides(folder)}


def labels(run: pathlib.Path) -> dict[str, str]:
  """Returns the true classes of the test slides of a run, where known."""
  found = {}
  for path in sorted(run.glob('fold_*/predictions.csv')):
    with path.open(newline='', encoding='utf-8') as file:
      for row in csv.DictReader(file):
        if row.get('split') == 'test' and row.get('label'):
          found[row['slide_id']] = row['label']
  return found
