"""The commands that the suite holds to stored goldens, on any machine."""

import dataclasses
import json
import pathlib
import shutil
import tempfile

import golden_bags
from golden_chain import Chain, Command
from golden_comparer import Width
import golden_forks
import golden_inputs
import golden_pictures
import golden_runner
import golden_systems
import golden_tools

TREE = pathlib.Path(__file__).resolve().parents[2]
STORED = pathlib.Path(__file__).resolve().parent / 'stored'
# Results folders that were trained once, by the first edition.
KEPT = ('kept_s2023', 'other_s2023')
# A class whose probability leads by less is not told from the next.
_MARGIN = 0.04

FIXED = Width(1e-5, 1e-5, reason='from fixed numbers, on any processor')
TRAINED = Width(
  0.02,
  0.02,
  loose=(
    '*/metrics.jsonl/*',
    '*/summary.json/*',
    '*/summary.csv/*',
    '*/temperature.json/*',
    '*/keep.h5/*',
    '*/attention/*',
  ),
  reason='two epochs of training on processors that sum in another order; what'
  ' follows from a choice is there, and of no fixed value',
)
_ENCODED = Width(
  1e-3,
  1e-3,
  reason='forty layers in float32 on processors that sum in another order',
)
_NETWORK = Width(
  loose=(
    '*/metrics.jsonl/*',
    '*/summary.json/*',
    '*/predictions.csv/rows/*',
  ),
  reason='a few steps of a network: what is written is held, not the numbers',
)
_MODEL_FILE = Width(
  1e-5,
  1e-5,
  loose=('*model.kmil/*model*.stablehlo*',),
  reason='programs are those of the installed JAX',
)

_DATA = '--csv_path=labels.csv --features_dir=features'
_RUN = '--run=results/kept_s2023'
# What the kept folders were trained with.
_TRAINING = f'{_DATA} --split_dir=splits --k=2 --epochs=2'
_LINES = {
  'kept_s2023': f'kmil {_TRAINING} --drop_fraction=0.3 --exp_code=kept',
  'other_s2023': f'kmil {_TRAINING} --model=abmil --exp_code=other',
}


def kept_inputs(folder: pathlib.Path) -> None:
  """Writes the cohort of the kept folders, without these."""
  golden_pictures.trained_slides(folder, width=4)
  names = [f'2024-01{i}_A' for i in range(6)]
  for i, (train, val, test) in enumerate(
    (((0, 1), (2, 3), (4, 5)), ((4, 5), (0, 1), (2, 3)))
  ):
    rows = [
      [names[a], names[b], names[c]]
      for a, b, c in zip(train, val, test, strict=True)
    ]
    path = folder / f'splits/splits_{i}.csv'
    golden_inputs.table(path, [['train', 'val', 'test'], *rows])


def kept(folder: pathlib.Path) -> None:
  """Writes the cohort of the kept folders, and puts these into results."""
  kept_inputs(folder)
  for name in KEPT:
    shutil.copytree(STORED / name, folder / 'results' / name)


def _of(chain: Chain, *names: str, width: Width | None = None):
  """Returns commands of a chain of the recorder, of another width."""
  return tuple(
    dataclasses.replace(command, width=width or command.width)
    for command in chain.commands
    if command.name in names
  )


FROC = Chain(
  'froc',
  golden_inputs.detections,
  _of(golden_tools.FROC, 'json', width=FIXED),
)
FAULTS = Chain(
  'faults',
  golden_inputs.faulty_cohorts,
  _of(
    golden_tools.FAULTS,
    'unknown_model',
    'no_column',
    'every_problem',
    'fold_out_of_range',
    'patient_in_two_parts',
  ),
)
KEPT_FOLDER = Chain(
  'kept',
  kept,
  (
    Command(
      'compare',
      'compare results/kept_s2023 results/other_s2023 --format=json',
      printed=True,
      width=FIXED,
    ),
    Command('report', f'report {_RUN}', width=FIXED),
    Command(
      'predict_run',
      f'predict {_RUN} --features_dir=features --exp_code=again',
      width=FIXED,
    ),
    Command('export', f'export {_RUN} --out=model.kmil', width=_MODEL_FILE),
    Command(
      'predict_file',
      'predict --model=model.kmil --features_dir=features --exp_code=file',
      width=FIXED,
    ),
    Command(
      'maps', f'draw_maps {_RUN} --slides_dir=slides --geojson', width=FIXED
    ),
    Command('resumed', _LINES['kept_s2023'], width=FIXED),
    Command(
      'changed_flags',
      f'{_LINES["kept_s2023"]} --lr=0.001',
      exit=1,
      names=('results/kept_s2023', 'lr', '0.001'),
    ),
  ),
)
COHORT = Chain(
  'cohort',
  golden_inputs.default_cohort,
  (
    *_of(golden_bags.COHORT, 'check'),
    *_of(golden_bags.COHORT, 'mine', width=TRAINED),
    *_of(golden_bags.COHORT, 'mean_pooling', width=TRAINED),
  ),
)
SLIDE = Chain(
  'slide',
  golden_pictures.outlines,
  _of(golden_tools.OUTLINES, 'regions', width=_ENCODED),
)
CT_NODES = Chain(
  'ct_nodes',
  golden_pictures.nodes,
  _of(golden_systems.CT_NODES, 'table_3', 'unknown', width=_NETWORK),
)
CHAINS = (FROC, FAULTS, KEPT_FOLDER, COHORT, SLIDE, CT_NODES)


def reduced(records: dict) -> dict:
  """Returns records without what another machine or version may change.

  Pictures' sizes go, a class that leads by a hair becomes '?', and numbers are
  rounded.
  """
  for record in records.values():
    for name, file in record['files'].items():
      if file.get('kind') == 'png':
        file.pop('size', None)
      if name.endswith('predictions.csv'):
        _forget_close_classes(file)
  return _rounded(records)


def _forget_close_classes(file: dict) -> None:
  """Puts '?' for the class of rows whose best two are about as probable."""
  columns = file['columns']
  if 'pred' not in columns:
    return
  places = [i for i, name in enumerate(columns) if name.startswith('prob_')]
  for row in file['rows']:
    best = sorted(float(row[i]) for i in places)
    if best[-1] - best[-2] < _MARGIN:
      row[columns.index('pred')] = '?'


def _rounded(values):
  if isinstance(values, dict):
    return {key: _rounded(value) for key, value in values.items()}
  if isinstance(values, list):
    return [_rounded(value) for value in values]
  return float(f'{values:.8g}') if isinstance(values, float) else values


def pretty(values, indent: int = 0) -> str:
  """Returns JSON with a line for each key, and for each list of values."""
  space = ' ' * (indent + 1)
  if isinstance(values, dict) and values:
    lines = [
      f'{space}{json.dumps(key, ensure_ascii=False)}: '
      + pretty(value, indent + 1)
      for key, value in values.items()
    ]
    return '{\n' + ',\n'.join(lines) + '\n' + ' ' * indent + '}'
  if isinstance(values, list) and any(
    isinstance(value, dict | list) for value in values
  ):
    lines = [space + pretty(value, indent + 1) for value in values]
    return '[\n' + ',\n'.join(lines) + '\n' + ' ' * indent + ']'
  return json.dumps(values, ensure_ascii=False)


def recorded(chain: Chain, folder: pathlib.Path, programs: pathlib.Path):
  """Returns the reduced records of a chain, run in forks."""
  records = golden_runner.record_chain(
    chain, TREE, folder, programs, call=golden_forks.call
  )
  return reduced(records)


def goldens(chain: Chain) -> dict:
  """Returns the stored records of a chain."""
  path = STORED / f'{chain.name}.json'
  return json.loads(path.read_text(encoding='utf-8'))


def store(expression: str | None = None) -> None:
  """Writes goldens anew; the kept folders only where there are none.

  Args:
    expression: names of chains, joined by `or`; None: all.
  """
  words = [word.strip() for word in (expression or '').split(' or ')]
  STORED.mkdir(exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='golden_') as temporary:
    root = pathlib.Path(temporary).resolve()
    _keep(root)
    for chain in CHAINS:
      if not any(word in chain.name for word in words):
        continue
      records = recorded(chain, root / chain.name, root / 'programs')
      path = STORED / f'{chain.name}.json'
      path.write_text(pretty(records) + '\n', encoding='utf-8')


def _keep(root: pathlib.Path) -> None:
  """Trains the kept folders that are not there."""
  lines = {
    name: line for name, line in _LINES.items() if not (STORED / name).is_dir()
  }
  if not lines:
    return
  chain = Chain(
    'training',
    kept_inputs,
    tuple(Command(name, line) for name, line in lines.items()),
  )
  folder = root / chain.name
  records = golden_runner.record_chain(chain, TREE, folder, root / 'programs')
  for name in lines:
    if records[name]['exit'] != 0:
      raise SystemExit(f'{name} was not trained')
    source = folder / 'results' / name
    drawn = ['figures', 'report.html']
    if name != KEPT[0]:  # Of the other only the predictions are compared.
      drawn += ['checkpoints', 'attention', 'keep']
    shutil.copytree(
      source, STORED / name, ignore=shutil.ignore_patterns(*drawn)
    )
    for path in (STORED / name).rglob('*'):
      if path.suffix in ('.json', '.txt'):  # Where it was trained is no matter.
        text = path.read_text(encoding='utf-8')
        path.write_text(text.replace(f'{folder}/', ''), encoding='utf-8')
