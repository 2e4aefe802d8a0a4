"""The paper's tables and figures: what is run, and each number in its place."""

import csv

import feature_folder
from matplotlib import figure
import numpy as np
import paper_folders
from paper_folders import K, run, value
from PIL import Image
import pytest
import script_process

from experiments import papers
from experiments.bags import ablation
from experiments.evaluation import comparison, predictions
from experiments.evaluation.predictions import Predictions
from experiments.evaluation.tables import (
  INTERVAL,
  MEAN,
  STD,
  Published,
  Row,
  Table,
)
from experiments.papers import figures, runs
from experiments.papers.tables import MODELS
from kmil_jax import cost, metrics

COLUMNS = {'ACC': 'accuracy', 'F1 score': 'f1_macro', 'AUROC': 'auroc'}
WHOLE = {
  'internal': 'here, all folds pooled',
  'external': 'here, mean probability',
}
PAPER = papers.read('zheng')


@pytest.fixture
def commands(monkeypatch):
  """Stands for the commands, which end at once and leave drawn results."""
  drawn = paper_folders.Commands()
  monkeypatch.setattr(runs.subprocess, 'run', drawn)
  return drawn


def read_csv(folder, name):
  with (folder / 'paper_s2023' / f'{name}.csv').open(newline='') as f:
    return list(csv.DictReader(f))


def results(folder):
  return comparison.read(folder, folder.name)


def cells(p, classes):
  """Returns what a table may hold of predictions, by column."""
  found = metrics.evaluate(p.label, p.prob)
  values = {column: found[name] for column, name in COLUMNS.items()}
  values['balanced ACC'] = found['class_recall'].mean()
  for kind in ('recall', 'precision'):
    for name, share in zip(classes, found[f'class_{kind}'], strict=True):
      values[f'{kind}: {name}'] = 100 * share
      if kind == 'recall':
        values[f'ACC: {name}'] = share
  return values


def lines_of(run, cohort, columns):
  """Returns what stands in the lines of a run, by line and column."""
  whole, parts = run.test(), [p['test'] for p in run.folds.values()]
  if cohort == 'external':
    parts = predictions.read_external(run.folder, run.classes).values()
    whole = run.external()
  whole, *parts = (cells(p, run.classes) for p in (whole, *parts))
  each = {c: [part[c] for part in parts] for c in columns if c in whole}
  return {
    WHOLE[cohort]: whole,
    MEAN: {c: np.nanmean(values) for c, values in each.items()},
    STD: {
      c: np.std([x for x in values if np.isfinite(x)], ddof=1)
      for c, values in each.items()
    },
  }


def assert_cells(row, columns, values):
  """What is not defined is a cell that is empty."""
  held = [float(row[column] or 'nan') for column in columns]
  wanted = [values.get(column, np.nan) for column in columns]
  assert held == pytest.approx(wanted, rel=1e-5, abs=2e-6, nan_ok=True)


@pytest.mark.parametrize(
  ('flags', 'names', 'external'),
  [
    ('--table=1', [*MODELS], False),
    ('--table=2 --models=kmil,transmil', ['transmil', 'kmil'], True),
    ('--table=6', [*'abc'], False),
    ('--figure=2', [*MODELS], False),
    ('--figure=3 --models=kmil,dsmil', ['dsmil', 'kmil'], True),
    ('--figure=4', [*'abc'], True),
  ],
)
def test_numbers_are_those_of_the_runs(
  commands, tmp_path, capsys, flags, names, external
):
  given = [K, f'--results_dir={tmp_path}', '--epochs=7']
  run(*flags.split(), *given)
  given += ['--external_phantom=True'] * external
  about = [(n, 'origin') if n in MODELS else ('kmil', n) for n in names]
  fixed = '-m experiments.kmil --model={} --task={} --heat_maps=0'
  assert [[*c[:5], *sorted(c[5:])] for c in commands.seen] == [
    [*fixed.format(*one).split(), *sorted(given)] for one in about
  ]
  name = flags.split()[0].strip('-').replace('=', '_')
  out, err = capsys.readouterr()
  assert out == (tmp_path / f'paper_s2023/{name}.md').read_text()
  assert err.count('$ python -m experiments.kmil') == len(names)
  assert 'the phantom cohort, ' in out and '60 slides of 30 cases' in out
  assert '--epochs=7' in out and 'nothing about the accuracy' in out
  assert ('(external: 16 slides of 8 cases)' in out) == external
  is_wide = name in ('figure_3', 'figure_4')
  cohorts = [*WHOLE] if is_wide else [[*WHOLE][name == 'table_2']]
  rows = {}
  for row in read_csv(tmp_path, name):
    *labels, source = [*row.values()][: 2 + is_wide]
    columns = [*row][2 + is_wide :]
    rows[*labels, source] = row
  for (key, task), label in zip(about, names, strict=True):
    one = results(tmp_path / f'{key}_{task}_s2023')
    for cohort in cohorts:
      labels = MODELS.get(label, label.upper()), *[cohort] * is_wide
      wanted = lines_of(one, cohort, columns)
      known = PAPER[name].values.get(labels)
      if known:
        wanted[PAPER[name].source] = known
      for source, values in wanted.items():
        assert_cells(rows.pop((*labels, source)), columns, values)
      for end, sign in (('low', 1), ('high', -1)):
        row = rows.pop((*labels, f'95 % interval, {end}'))
        for column in filter(row.get, columns):
          value = wanted[WHOLE[cohort]][column]
          assert sign * float(row[column]) <= sign * value
  assert not rows
  if name.startswith('figure'):
    with Image.open(tmp_path / f'paper_s2023/{name}.png') as picture:
      assert min(picture.size) > 1000
      assert np.asarray(picture.convert('RGB')).std() > 10


@pytest.mark.parametrize('number', [4, 5])
def test_ablations_are_shown_in_both_orientations(commands, tmp_path, number):
  run(f'--table={number}', K, f'--results_dir={tmp_path}')
  ((*command, _, _),) = commands.seen
  assert command == ['-m', 'experiments.ablations']
  name, root = f'table_{number}', tmp_path / 'ablations_origin_s2023'
  rows = {tuple(row.values())[:4]: row for row in read_csv(tmp_path, name)}
  # Which instances go, by the variance, as the released code ranks them.
  kinds = ('lowest', 'highest')[:: 1 if number == 4 else -1]
  for score, kind in zip(('var', 'one_minus_var'), kinds, strict=True):
    settings = getattr(ablation, f'TABLE_{number}')[score]
    assert [(f'{t:g}',) for t in settings] == [*PAPER[name].values]
    for t, setting in settings.items():
      share, dropped = t if number == 4 else 1 - t, 'nothing'
      wanted = lines_of(results(root / setting), 'internal', COLUMNS)
      wanted[PAPER[name].source] = PAPER[name].values[f'{t:g}',]
      if share:
        dropped = f'{kind} {100 * share:.0f} % of the variance'
        assert setting == f'{kind}_{share:.2f}'
        # It is compared with dropping nothing, on the same slides.
        pair = [results(root / x) for x in ('all', setting)]
        change = {row['metric']: row for row in comparison.compare(pair)}
        for source, key in (
          ('here, minus nothing dropped', 'difference'),
          ('95 % interval of that, low', 'ci_low'),
          ('95 % interval of that, high', 'ci_high'),
        ):
          wanted[source] = {c: change[m][key] for c, m in COLUMNS.items()}
      else:
        assert setting == 'all'
      for source, values in wanted.items():
        row = rows[score, f'{t:g}', dropped, source]
        assert_cells(row, COLUMNS, values)


def test_table_3_adds_up_both_stages(monkeypatch, tmp_path):
  monkeypatch.setattr(cost, 'flops', lambda *_: None)  # A backend without it.
  run('--table=3', '--models=kmil', f'--results_dir={tmp_path}')
  here, _ = read_csv(tmp_path, 'table_3')
  # ABMIL and DSMIL, both on all instances.
  parameters, operations = (530_182 + 178_442) / 1000, 52.45952 + 16.02048
  held = [float(x) for x in [*here.values()][2:5]]
  assert held[:2] == pytest.approx([operations, parameters], abs=1e-3)
  assert 0 < held[2] < 10
  assert here["operations (M), XLA's count"] == ''


@pytest.mark.parametrize('classes', [2, 3, 5])
@pytest.mark.parametrize('ties', [False, True])
def test_the_area_below_the_curve_is_the_auroc_of_the_tables(classes, ties):
  p = paper_folders.part(0, 60, range(classes), 1.0, 'x')
  prob = np.round(p.prob, 1) if ties else p.prob
  x, y = figures.mean_roc(Predictions(p.case, p.slide, p.label, prob))
  assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
  assert (np.diff(x) >= 0).all() and (np.diff(y) >= -1e-12).all()
  area = np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)
  value = metrics.evaluate(p.label, prob)['auroc']
  assert area == pytest.approx(value, abs=1e-12)
  # A class without slides has no curve.
  label = np.minimum(p.label, classes - 2)
  p = Predictions(p.case, p.slide, label, prob)
  assert np.isnan(figures.mean_roc(p)).all()


def test_a_figure_draws_values_intervals_means_and_the_papers():
  lines = {
    MEAN: [None, 0.45],
    WHOLE['internal']: [None, 0.5],
    INTERVAL: [(None, None), (0.4, 0.6)],
  }
  row = Row(('KMIL',), lines)
  published = Published('', {('KMIL',): {'x': 0.3, 'y': 0.7}})
  columns = {'x': '', 'y': ''}
  table = Table('', '', (), columns, [row], published=published)
  ax = figure.Figure().subplots()
  figures._bars(ax, 'xy', {'KMIL': figures._marks(table, row)})
  assert [bar.get_height() for bar in ax.patches] == [0.5]
  shown = {'_': [], 'white': [], 'black': []}
  for mark in ax.lines:
    kind = '_' if mark.get_marker() == '_' else mark.get_mfc()
    shown[kind] += np.ravel(mark.get_ydata()).tolist()
  assert shown == {'_': [0.4, 0.6], 'white': [0.3, 0.7], 'black': [0.45]}
  # What is undefined is written where its bar would stand.
  (text,) = ax.texts
  assert text.get_text() == 'n/a' and 0 < text.get_position()[0] < 1


def test_the_names_of_all_models_fit_below_figure_2():
  drawing = figure.Figure((11, 8.6), layout='constrained')
  source = Published('Zheng et al. 2024, Table 1', {})
  table = Table('', '', (), {}, [], published=source)
  figures._legend(drawing, [*MODELS.values()], table, 'here')
  drawing.draw_without_rendering()
  place = drawing.legends[0].get_window_extent()
  assert 0 <= place.x0 and place.x1 <= drawing.bbox.width


@pytest.mark.parametrize(('status', 'code'), [(3, 3), (-9, 137)])
def test_a_failing_command_ends_the_script(
  commands, tmp_path, capsys, status, code
):
  commands.status = lambda count: status
  flags = [K, f'--results_dir={tmp_path}', '--exp_code=short']
  with pytest.raises(SystemExit) as e:
    run('--table=1', *flags)
  assert e.value.code == code
  err = capsys.readouterr().err
  assert 'failed: python -m experiments.kmil --model=abmil' in err
  assert not list(tmp_path.iterdir())
  # An experiment of one's own name has its own folders.
  assert value(commands.seen[-1], '--exp_code') == 'short_abmil_origin'
  with pytest.raises(SystemExit):
    run('--table=4', *flags)
  assert value(commands.seen[-1], '--exp_code') == 'short_ablations_origin'


def test_check_is_passed_on_to_every_command(commands, tmp_path):
  commands.status = lambda count: count == 2
  with pytest.raises(SystemExit) as e:
    run('--table=1', '--check', K, f'--results_dir={tmp_path}')
  assert e.value.code == 1  # The second of them had problems; the rest ran.
  assert [command[5] for command in commands.seen] == ['--check'] * 5
  assert not list(tmp_path.iterdir())


def in_fork(command, **_):
  """Runs a command where what it imports is there."""
  module, *args = command[2:]
  before = script_process.HASTY + feature_folder.UNDRAWN
  return script_process.run(module, *args, before=before)


def test_what_is_missing_is_trained_once(tmp_path, monkeypatch, capsys):
  bags, labels = feature_folder.planted(num_bags=18, classes=2)
  bags = [np.resize(bag, (8, bag.shape[1])) for bag in bags]  # Compiles once.
  args = [*feature_folder.write(tmp_path, bags, labels), '--k=3', '--epochs=2']
  args += ['--models=abmil,dsmil', '--exp_code=tiny', '--seed=4']
  args += ['--select=last', f'--results_dir={tmp_path}', '--table=1']
  monkeypatch.setattr(runs.subprocess, 'run', in_fork)
  run(*args)
  written = {}
  for model in ('abmil', 'dsmil'):
    folder = tmp_path / f'tiny_{model}_origin_s4'
    paths = [*folder.glob('fold_*/predictions.csv')]
    assert len(paths) == 3
    written |= {path: path.stat().st_mtime_ns for path in paths}
  capsys.readouterr()
  run(*args)
  assert all(path.stat().st_mtime_ns == t for path, t in written.items())
  out = capsys.readouterr().out
  assert out == (tmp_path / 'tiny_paper_s4' / 'table_1.md').read_text()
  assert 'phantom' not in out
  assert 'labels.csv' in out and '18 slides of 18 cases' in out
  # The paper's numbers of its classes 0 and 1 stand beside those so named.
  assert 'Table 1, p. 4 | 76.30 | 79.86 | 71.89 | 73.94 |' in out
  # A folder of other settings is left to the command.
  with pytest.raises(SystemExit, match='1'):
    run(*args, '--epochs=3')
