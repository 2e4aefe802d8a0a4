"""The documented command of the few-shot study, on slides of two colours."""

import json

import few_shot_slides
import pytest
import script_process

from experiments import few_shot
from experiments.run.results import Folder
from experiments.studies import few_shot_training as training
from experiments.studies.few_shot_training import Setting

# One block in every stage, and no optimisation: a fifth of the compilation.
HASTY = (
  script_process.HASTY
  + 'from kmil_jax.models import reverse_distillation\n'
  + 'reverse_distillation.STAGES = (1, 1, 1)'
)


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
  root = few_shot_slides.make(tmp_path_factory.mktemp('c16'))
  data = vars(few_shot_slides.data(root))

  return Folder(root / 'few_shot_s4'), [
    *(f'--{name}={path}' for name, path in data.items() if path),
    f'--results_dir={root}',
    f'--cache_dir={root}',
    '--width=2',
    '--epochs=2',
    '--batch=4',
    '--lr=0.003',
    '--seed=4',
  ]


def test_the_documented_command_goes_on_where_it_was(asked):
  folder, flags = asked
  start = lambda: script_process.run(
    'experiments.few_shot', *flags, before=HASTY
  )
  done = start()
  assert done.returncode == 0, done.stderr
  assert 'THE TEACHER IS RANDOM' in done.stdout
  assert 'here (paper): width 2 (64), epochs 2 (50)' in done.stdout
  for name in ('RD', 'FW-RD', 'unweighted', 'unweighted_focal', 'balanced'):
    path = f'runs/{name}_s4'
    loss = [line['train_loss'] for line in folder.read(f'{path}/metrics.jsonl')]
    assert loss[1] < loss[0]
    rows = folder.read(f'{path}/scores.csv')
    assert all(0 < float(r['mean']) < float(r['max']) < 3 for r in rows)
    found = training.scores(folder, Setting(name, 3, 3, 0.1, seed=4))
    assert len(found['val'].mean) > 1 and len(found['test'].mean) == 15
    assert found['test'].tumour.sum() == 6
  assert not list(folder.at('checkpoints').iterdir())
  held = json.loads(folder.at('summary.json').read_text())
  # On these slides there is nothing but isolated cells.
  assert held['slides']['FW-RD']['froc'] is None
  # What is there is not made again, and makes the same.
  kept = [
    folder.at('runs/RD_s4/model.safetensors'),
    folder.at('slides/RD_s4/maps/test_002.npz'),
  ]
  before = [path.stat().st_mtime_ns for path in kept]
  folder.at('summary.json').unlink()
  done = start()
  assert done.returncode == 0, done.stderr
  assert [path.stat().st_mtime_ns for path in kept] == before
  assert folder.read('summary.json') == held

  # --per is the former name of --similarity.
  with pytest.raises(SystemExit, match='similarity: location before, map now'):
    few_shot.main(['few_shot', *flags, '--per=map'])
