"""Seeded mutants: small faults that the tests must find.

  python tests/mutants.py                # all of them: an hour or two
  python tests/mutants.py 3 pooling      # number 3, and those of a file
  python tests/mutants.py --list         # runs nothing, checks the texts

Each is put into a temporary copy of the tree, alone, and a file of tests that
should fail is run there. Prints what became of each, and a table; the exit code
is 1 if one lives. Not collected by pytest.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
COPIED = ('data', 'experiments', 'kmil_jax', 'tests', 'pyproject.toml')
SECONDS = 1200


class Mutant(NamedTuple):
  """A fault: `old`, which a file holds once, becomes `new`."""

  file: str
  old: str
  new: str
  tests: str  # a file under tests/, and maybe a -k


def faults(file: str, tests: str, *pairs: tuple[str, str]) -> list[Mutant]:
  """Returns those of one file that the same tests should find."""
  return [Mutant(file, old, new, tests) for old, new in pairs]


MUTANTS = [
  # Models.
  *faults(
    'kmil_jax/models/pooling.py',
    'kmil_jax/pooling_test.py',
    (', axis=0, where=mask)', ', axis=0)'),
    (
      'jnp.max(values, axis=0, where=mask[:, None], initial=-jnp.inf)',
      'jnp.max(values, axis=0)',
    ),
    (
      'jnp.argmax(jnp.where(mask[:, None], values, -jnp.inf), axis=0)',
      'jnp.argmax(jnp.where(mask[:, None], values, 0), axis=0)',
    ),
    ('jnp.where(mask, -scores, jnp.inf)', 'jnp.where(mask, scores, jnp.inf)'),
    (
      '_times(x, grad.T), _times(weights, grad)',
      '_times(x, grad.T), -_times(weights, grad)',
    ),
  ),
  *faults(
    'kmil_jax/models/pooling.py',
    'kmil_jax/dtfd_test.py',
    ('< mask.sum(0)', '<= mask.sum(0)'),
  ),
  *faults(
    'kmil_jax/models/pooling.py',
    'kmil_jax/models_test.py -k nan',
    ('jnp.where(mask[:, None] | jnp.isfinite(x), x, 0)', 'x'),
  ),
  *faults(
    'kmil_jax/models/dsmil.py',
    'kmil_jax/bag_parity_test.py -k dsmil',
    (' / self.hidden**0.5', ''),
  ),
  *faults(
    'kmil_jax/models/dsmil.py',
    'kmil_jax/bfloat16_test.py',
    (
      "TorchDense(self.hidden, name='query_2')",
      "TorchDense(self.hidden, self.dtype, name='query_2')",
    ),
  ),
  *faults(
    'kmil_jax/models/abmil.py',
    'kmil_jax/bag_parity_test.py -k abmil',
    ('branch * drop(nn.sigmoid(gate))', 'branch + drop(nn.sigmoid(gate))'),
  ),
  *faults(
    'kmil_jax/models/dtfd.py',
    'kmil_jax/dtfd_test.py',
    ('jax.lax.stop_gradient(rows)', 'rows * 1'),
    ('(group < more)', '(group <= more)'),
  ),
  *faults(
    'kmil_jax/models/dtfd.py',
    'kmil_jax/bag_parity_test.py -k dtfd',
    ('prob[:, -1:]', 'prob[:, :1]'),
  ),
  *faults(
    'kmil_jax/models/dtfd.py',
    'kmil_jax/models_test.py',
    ('attention / real.sum()', 'attention'),
  ),
  *faults(
    'kmil_jax/models/kmil.py',
    'kmil_jax/kmil_test.py',
    ('ddof=1', 'ddof=0'),
    (
      "scores if drop == 'lowest' else -scores",
      "-scores if drop == 'lowest' else scores",
    ),
  ),
  *faults(
    'kmil_jax/models/transmil.py',
    'kmil_jax/transmil_test.py',
    (
      'repeats = min(size, 2 * longest - 2)',
      'repeats = min(size, 2 * longest - 3)',
    ),
    ('(column + step[1] < side)', '(column + step[1] <= side)'),
  ),
  *faults(
    'kmil_jax/models/nystrom.py',
    'kmil_jax/transmil_test.py',
    (
      'zeros = group * LANDMARKS - count',
      'zeros = group * LANDMARKS - count + 1',
    ),
  ),
  *faults(
    'kmil_jax/models/network.py',
    'kmil_jax/precision_test.py -k bag_models',
    (
      "default_matmul_precision('highest')",
      "default_matmul_precision('default')",
    ),
  ),
  # Losses and tasks.
  *faults(
    'kmil_jax/losses.py',
    'kmil_jax/losses_test.py',
    (
      '0.5 * cross_entropy(prediction, mask, label) + 0.5',
      '0.5 * cross_entropy(prediction, mask, label) + 1.0',
    ),
  ),
  *faults(
    'kmil_jax/losses.py',
    'kmil_jax/dtfd_test.py',
    ('.sum() / real.sum()', '.sum() / real.size'),
  ),
  *faults(
    'kmil_jax/tasks/bags.py',
    'kmil_jax/train_test.py -k fillers',
    (' & (batch.index >= 0)', ''),
  ),
  *faults(
    'kmil_jax/tasks/bags.py',
    'kmil_jax/train_test.py',
    ('< store.length[real][:, None]', '<= store.length[real][:, None]'),
    ('batch.mask & jax.vmap(cut)(batch.offset)', 'batch.mask'),
  ),
  *faults(
    'kmil_jax/tasks/tiles.py',
    'kmil_jax/tiles_test.py',
    (
      'jnp.asarray(self._class_weight)[batch.label] * batch.weight',
      'batch.weight',
    ),
  ),
  *faults(
    'kmil_jax/tasks/distill.py',
    'kmil_jax/distill_test.py -k highest_f1',
    ('np.flatnonzero(f1 == f1.max())[-1]', 'np.flatnonzero(f1 == f1.max())[0]'),
  ),
  # Training.
  *faults(
    'kmil_jax/train.py',
    'kmil_jax/train_test.py -k may_be_nan',
    (
      'jnp.where(weight > 0, losses * weight, 0).sum()',
      '(losses * weight).sum()',
    ),
  ),
  *faults(
    'kmil_jax/train.py',
    'kmil_jax/train_test.py -k moves_only',
    ('jnp.where(state.active[:, None], weight, 0)', 'weight * 1'),
  ),
  *faults(
    'kmil_jax/train.py',
    'kmil_jax/train_test.py',
    ('jnp.where(weight > 0, new, old)', 'jnp.where(weight >= 0, new, old)'),
  ),
  *faults(
    'kmil_jax/train.py',
    'kmil_jax/loop_test.py',
    (
      'loss, grads, sums = psum((loss, grads, sums))',
      'loss, sums = psum((loss, sums))',
    ),
  ),
  *faults(
    'kmil_jax/train.py',
    'kmil_jax/train_test.py -k goes_back',
    (
      'choose(failed, best, state.variables)',
      'choose(failed, state.variables, best)',
    ),
  ),
  *faults(
    'kmil_jax/optim.py',
    'kmil_jax/optim_test.py',
    ('clip = [clip_modules(recipe.clip)] if recipe.clip else []', 'clip = []'),
  ),
  *faults(
    'kmil_jax/selection.py',
    'kmil_jax/selection_test.py',
    ('return epoch > min(', 'return epoch + 1 > min('),
    ("'f1_macro', better=np.greater_equal", "'f1_macro'"),
  ),
  # Figures.
  *faults(
    'kmil_jax/metrics.py',
    'kmil_jax/metrics_test.py',
    ('table.sum(-2), table.sum(-1)', 'table.sum(-1), table.sum(-2)'),
    (
      'lowest[:, below] + lowest[:, up_to]',
      'lowest[:, below] + lowest[:, below]',
    ),
    ('np.isfinite(x).sum(-1))', 'np.ones_like(x).sum(-1))'),
    ('absent.any(-1)', 'absent.all(-1)'),
  ),
  *faults(
    'kmil_jax/intervals.py',
    'kmil_jax/intervals_test.py',
    ('patients / (patients - 1) * square', 'square'),
    ('np.arange(len(order), 0, -1)', 'np.arange(1, len(order) + 1)'),
    ('2 * (1 + side)', '2 * side'),
    (
      'np.unique(case, return_inverse=True)\n  rng, size',
      'np.unique(np.arange(len(case)), return_inverse=True)\n  rng, size',
    ),
  ),
  *faults(
    'experiments/evaluation/summary.py',
    'experiments/summary_test.py',
    ("~np.isin(whole.case, parts['test'].case)", 'whole.label >= 0'),
  ),
  # Lesions, mining, splits.
  *faults(
    'kmil_jax/froc.py',
    'kmil_jax/froc_test.py',
    ('np.where(truth.cells, 0.0, best[1:])', 'best[1:]'),
    ('score[label == 0]', 'score[label >= 0]'),
    ('[:0:-1]', '[::-1]'),
    ('_CELLS_UM / pixel', '_CELLS_UM / mpp'),
  ),
  *faults(
    'kmil_jax/mining.py',
    'kmil_jax/mining_test.py',
    ('rough = 1 - dot(', 'rough = dot('),
    ('near + offset', 'near'),
    (
      'np.lexsort((query, index, distance))',
      'np.lexsort((query, distance, index))',
    ),
  ),
  *faults(
    'kmil_jax/splits.py',
    'data/splits_test.py',
    ('train = ~(val | test)', 'train = ~test'),
    (
      'np.maximum.at(last, place, code)',
      'last[place[::-1]] = code[::-1]',
    ),
  ),
  *faults(
    'data/splits.py',
    'data/splits_test.py',
    (
      '[getattr(split, part)]) for part in PARTS}\n    lines',
      '[getattr(split, part)]) for part in PARTS}\n    continue\n    lines',
    ),
  ),
  *faults(
    'kmil_jax/tasks/bags.py',
    'kmil_jax/plan_test.py',
    ('order = order[visit[order]]', 'order = order[visit]'),
  ),
]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('which', nargs='*', help='numbers, or parts of a path')
  parser.add_argument('--list', action='store_true')
  args = parser.parse_args()
  chosen = [
    (number, mutant)
    for number, mutant in enumerate(MUTANTS)
    if not args.which
    or any(w == str(number) for w in args.which)
    or any(w in mutant.file for w in args.which if not w.isdecimal())
  ]
  stale = [(n, m) for n, m in chosen if m.old not in once(m.file, m.old)]
  for number, mutant in stale:
    print(f'{number}: {mutant.file} does not hold {mutant.old!r} once')
  if stale or args.list:
    print(f'{len(chosen)} mutants, {len(stale)} whose text is not there')
    return int(bool(stale))
  with tempfile.TemporaryDirectory() as folder:
    tree = copy(pathlib.Path(folder))
    rows = []
    for number, mutant in chosen:
      start = time.monotonic()
      fate = run(tree, mutant)
      seconds = time.monotonic() - start
      rows.append((fate, number, mutant))
      print(f'{number:3} {fate:8} {seconds:5.0f} s  {mutant.file}', flush=True)
  print(f'\n| mutant | file | {"was":40} | tests | |\n|--|--|--|--|--|')
  for fate, number, mutant in rows:
    was = mutant.old.splitlines()[0][:40]
    print(f'| {number} | {mutant.file} | {was:40} | {mutant.tests} | {fate} |')
  lives = sum(fate != 'killed' for fate, *_ in rows)
  print(f'{len(rows) - lives} of {len(rows)} killed')
  return int(lives > 0)


def once(file: str, text: str) -> str:
  """Returns what a file holds, '' unless `text` is there once."""
  path = ROOT / file
  whole = path.read_text(encoding='utf-8') if path.exists() else ''
  return whole if whole.count(text) == 1 else ''


def copy(folder: pathlib.Path) -> pathlib.Path:
  ignored = shutil.ignore_patterns('__pycache__', 'stored')
  for name in COPIED:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    else:
      shutil.copy(ROOT / name, folder / name)
  return folder


def run(tree: pathlib.Path, mutant: Mutant) -> str:
  """Returns 'killed', 'lives', or 'broken' where no test could be run."""
  path = tree / mutant.file
  whole = path.read_text(encoding='utf-8')
  file, *rest = mutant.tests.split()
  command = [sys.executable, '-m', 'pytest', '-n0', '-x', '-q']
  command += ['-p', 'no:cacheprovider', f'tests/{file}', *rest]
  try:
    path.write_text(whole.replace(mutant.old, mutant.new), encoding='utf-8')
    done = subprocess.run(
      command,
      cwd=tree,
      env={
        **os.environ,
        'PYTHONPATH': str(tree),
        # A file written within a second of the last must be read anew.
        'PYTHONDONTWRITEBYTECODE': '1',
      },
      capture_output=True,
      timeout=SECONDS,
    )
  except subprocess.TimeoutExpired:
    return 'killed'  # As by a loop without end.
  finally:
    path.write_text(whole, encoding='utf-8')
  return {0: 'lives', 1: 'killed'}.get(done.returncode, 'broken')


if __name__ == '__main__':
  sys.exit(main())
