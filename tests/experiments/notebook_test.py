"""The notebook runs; what it writes is a plugin that every script takes."""

import json
import pathlib
import sys

import jax
import nbclient
import nbformat
import numpy as np
import pytest

from experiments import export, kmil, predict, report
from experiments.run import options
from experiments.run.options import OptionError
from experiments.run.results import Folder
import kmil_jax
from kmil_jax.models import SPECS
from kmil_jax.types import Prediction

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'notebooks' / 'first_week.ipynb'
SHOW = """
import json

found = {name: model.metrics(50)['auroc'][0] for name, model in models.items()}
json.dump(found | {'sklearn': min(scores)}, open('auroc.json', 'w'))
"""


@pytest.fixture(scope='module')
def week(tmp_path_factory):
  """The folder in which the notebook has run."""
  folder = tmp_path_factory.mktemp('week')
  page = nbformat.read(PAGE, as_version=4)
  for cell in page.cells:  # Enough to learn a little.
    cell.source = cell.source.replace(
      'epochs=80, learning_rate=2e-3', 'epochs=6, learning_rate=1e-2'
    )
  page.cells.append(nbformat.v4.new_code_cell(SHOW))
  where = {'metadata': {'path': str(folder)}}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', str(ROOT))
    patch.setenv('JAX_NUM_CPU_DEVICES', '1')
    nbclient.NotebookClient(page, timeout=900, resources=where).execute()
  return folder


def forget():
  """Makes the process one that has not imported the plugin."""
  SPECS.pop('clam_sb', None)
  sys.modules.pop('clam_sb', None)
  options.plugin_given = None


@pytest.fixture
def unknown(monkeypatch):
  """No plugin is known before or after a test."""
  monkeypatch.setattr(sys, 'path', [*sys.path])
  forget()
  yield
  forget()


@pytest.fixture(scope='module')
def run(week):
  """Results of a fold of the notebook's own model; the module is forgotten."""
  kmil.main(
    [
      *('kmil', f'--plugin={week / "clam_sb.py"}', '--model=clam_sb', '--k=3'),
      *(f'--csv_path={week / "labels.csv"}', '--fold=0', '--epochs=1'),
      *(f'--features_dir={week / "features"}', f'--results_dir={week}'),
    ]
  )
  forget()
  return week / 'clam_sb_origin_s2023'


def test_every_model_of_the_notebook_learns(week):
  found = json.loads((week / 'auroc.json').read_text())
  assert set(found) == {'ABMIL', 'ABMIL, focal', 'CLAM-SB', 'sklearn'}
  assert min(found.values()) > 0.7, found


def test_the_notebook_is_kept_without_outputs():
  page = nbformat.read(PAGE, as_version=4)
  assert not any(cell.get('outputs') for cell in page.cells)


def test_the_losses_of_clam_are_the_authors(week, unknown):
  import torch

  options.load_plugin(str(week / 'clam_sb.py'), 'test')
  loss = SPECS['clam_sb'].loss
  rng = np.random.default_rng(0)
  for n, label in (40, 0), (40, 2), (9, 1):
    attention = rng.dirichlet(np.ones(n))
    pairs, logits = rng.normal(size=(n, 3, 2)), rng.normal(size=3)
    values = torch.tensor(attention)
    top, low = values.topk(8).indices, (-values).topk(8).indices
    total = 0.0
    for c in range(3):
      rows, target = top, torch.zeros(8, dtype=int)
      if c == label:
        rows = torch.cat([top, low])
        target = torch.cat([torch.ones(8, dtype=int), target])
      x = torch.tensor(pairs)[rows, c]
      own = x.gather(1, target[:, None])
      # Berrada et al., Top1_Smooth_SVM with alpha = tau = 1.
      other = (torch.arange(2) != target[:, None]).double()
      total += torch.logsumexp(x + other - own, 1).mean() / 3
    bag = torch.nn.functional.cross_entropy(
      torch.tensor(logits)[None], torch.tensor([label])
    )
    ours = loss(
      Prediction(
        logits=logits,
        attention=attention[:, None],
        instance_logits=pairs[..., 1] - pairs[..., 0],
      ),
      np.ones(n, bool),
      np.int32(label),
    )
    np.testing.assert_allclose(ours, 0.7 * bag + 0.3 * total, rtol=1e-5)


def test_few_tiles_and_padding_leave_losses_and_gradients_finite(week, unknown):
  options.load_plugin(str(week / 'clam_sb.py'), 'test')
  spec = SPECS['clam_sb']
  model, x = spec.make(num_classes=2), np.ones((12, 5), np.float32)
  x[1] = 2
  init = jax.jit(model.init, static_argnames='train')
  weights = init(jax.random.key(0), x, np.arange(12) < 3, train=False)

  def value(weights, x, mask):
    return spec.loss(model.apply(weights, x, mask, train=False), mask, 1)

  seen = jax.jit(jax.value_and_grad(value))
  for count in 1, 3:
    short = seen(weights, x[:count], np.ones(count, bool))
    x[count:] = np.nan
    padded = seen(weights, x, np.arange(12) < count)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      short,
      padded,
    )
    x[:] = 1
    x[1] = 2


def test_parameters_of_clam_are_those_of_the_small_network(week, unknown):
  options.load_plugin(str(week / 'clam_sb.py'), 'test')
  x, mask = np.zeros((1, 1024)), np.ones(1, bool)
  model = SPECS['clam_sb'].make(num_classes=2)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), x, mask, train=False)
  )
  # Embedding, two branches and score of the attention, classifiers.
  expected = 1025 * 512 + 2 * 513 * 256 + 257 + 513 * 2 + 2 * 513 * 2
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_a_run_names_its_plugin_and_runs_no_code(run, week, unknown, capsys):
  plugin = week / 'clam_sb.py'
  assert Folder(run).config().plugin == str(plugin)
  with pytest.raises(ValueError, match=r'Import the module .*clam_sb\.py'):
    kmil_jax.load(run)
  features = f'--features_dir={week / "features"}'
  from_run = ['', f'--run={run}', '--fold=0']
  where = [features, f'--results_dir={week}']
  model = week / 'model.kmil'
  commands = {
    predict: [*from_run, *where, '--exp_code=of_run'],
    report: ['', f'--run={run}'],
    export: [*from_run, f'--out={model}'],
  }
  for script, command in commands.items():
    with pytest.raises(SystemExit) as end:
      script.main(command)
    assert f'If you trust it, give --plugin={plugin}' in end.value.code
    assert 'clam_sb' not in sys.modules
    script.main([*command, f'--plugin={plugin}'])
    forget()
  assert 'clam_sb' in (run / 'report.html').read_text(encoding='utf-8')
  # Which runs without it.
  predict.main(['', f'--model={model}', *where, '--exp_code=of_file'])
  assert 'clam_sb' not in SPECS
  rows = [
    Folder(week / name).read('predictions.csv')
    for name in ('of_run', 'of_file')
  ]
  assert len(rows[0]) == 24
  for one, other in zip(*rows, strict=True):
    assert one['slide_id'] == other['slide_id']
    np.testing.assert_allclose(
      float(one['prob_tumour']), float(other['prob_tumour']), atol=1e-5
    )


def test_a_models_check_estimates_its_training(week, unknown, capsys):
  with pytest.raises(SystemExit) as end:
    kmil.main(
      [
        *('kmil', f'--plugin={week / "clam_sb.py"}', '--model=clam_sb'),
        *(f'--csv_path={week / "labels.csv"}', '--k=3', '--check'),
        *(f'--features_dir={week / "features"}', f'--results_dir={week}'),
      ]
    )
  assert not end.value.code
  assert 'estimated time of 3 runs' in capsys.readouterr().out


@pytest.mark.parametrize(
  'name,text,message',
  [
    ('absent.py', None, r'^--plugin: no such file\. Give its place'),
    ('broken.py', 'x = 1\nx.y', r"'int' object .*broken\.py, line 2\)"),
    ('half.py', 'def f(:', 'SyntaxError: invalid syntax'),
    ('numpy.py', '', 'a module numpy is there already, .*Rename the file'),
    ('nowhere.to_be_found', None, "No module named 'nowhere'"),
  ],
)
def test_a_plugin_that_cannot_be_imported_is_named(
  tmp_path, monkeypatch, unknown, name, text, message
):
  monkeypatch.chdir(tmp_path)
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises(OptionError, match=message):
    options.load_plugin(name, '--plugin')


def test_options_of_a_kind_of_model_are_those_of_ones_own(
  tmp_path, monkeypatch, unknown, capsys
):
  """A model with a first stage takes the flags that choose its instances."""
  (tmp_path / 'own_kmil.py').write_text(
    'import kmil_jax\n'
    'from kmil_jax.models import SPECS\n'
    "kmil_jax.register('own_kmil', SPECS['kmil'])\n"
  )
  monkeypatch.chdir(tmp_path)
  flags = ['', '--model=own_kmil', '--drop_fraction=0.2', '--check']
  absent = ['--csv_path=labels.csv', '--features_dir=features']
  try:
    with pytest.raises(SystemExit):
      kmil.main([*flags, *absent, '--plugin=own_kmil'])
    # Past its flags.
    assert 'problem: labels.csv' in capsys.readouterr().out
  finally:
    SPECS.pop('own_kmil', None)
