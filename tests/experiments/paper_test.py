"""The paper's tables: what is run for them, and each number in its place."""

import csv

import numpy as np
import paper_folders
from paper_folders import K, run
import pytest

from experiments import papers
from experiments.bags import ablation
from experiments.evaluation import comparison, predictions
from experiments.papers import runs
from experiments.papers.tables import MODELS
from kmil_jax import cost, intervals, metrics

COLUMNS = {'ACC': 'accuracy', 'F1 score': 'f1_macro', 'AUROC': 'auroc'}
POOLED = 'here, all folds pooled'
MEAN = 'here, mean of folds'
ENDS = ('low', 'high')  # of an interval
PAPER = papers.read('zheng')


@pytest.fixture
def commands(monkeypatch):
  made = paper_folders.Commands()
  monkeypatch.setattr(runs.subprocess, 'run', made)
  return made


def read_csv(folder, name):
  with (folder / 'paper_s2023' / f'{name}.csv').open(newline='') as f:
    return list(csv.DictReader(f))


def line(rows, source, *labels):
  """The one line of a table that begins with these labels."""
  (found,) = [
    row
    for row in rows
    if row['from'].startswith(source)
    and tuple(row.values())[: len(labels)] == labels
  ]
  return found


def results(folder):
  return comparison.read(folder, folder.name)


def scores(p):
  values = metrics.evaluate(p.label, p.prob)
  return [values[name] for name in COLUMNS.values()]


def assert_values(row, expected, columns=tuple(COLUMNS), width=2e-6):
  values = [float(row[name]) for name in columns]
  assert values == pytest.approx(list(expected), abs=width)


def assert_published(rows, table, *labels, key=None):
  row = line(rows, 'Zheng et al. 2024', *labels)
  for column, value in PAPER[table].values[key or labels].items():
    assert float(row[column]) == value


def test_table_1_runs_the_five_models_and_counts_their_hits(
  commands, tmp_path, capsys
):
  run('--table=1', K, '--epochs=7', f'--results_dir={tmp_path}')
  fixed = '-m experiments.kmil --model={} --task=origin --heat_maps=0'
  given = [K, f'--results_dir={tmp_path}', '--epochs=7']
  seen = [[*command[:5], *sorted(command[5:])] for command in commands.seen]
  assert seen == [[*fixed.format(m).split(), *sorted(given)] for m in MODELS]
  out, err = capsys.readouterr()
  assert err.count('$ python -m experiments.kmil') == 5
  assert 'the phantom cohort, 60 slides of 30 cases; ' in out
  assert '--epochs=7' in out and 'nothing about the accuracy' in out
  rows = read_csv(tmp_path, 'table_1')
  for model, shown in MODELS.items():
    found = results(tmp_path / f'{model}_origin_s2023')
    tests = [found.test(), *(parts['test'] for parts in found.folds.values())]
    for kind in ('recall', 'precision'):
      pooled, *by_fold = (
        100 * metrics.evaluate(p.label, p.prob)[f'class_{kind}'] for p in tests
      )
      columns = [f'{kind}: {name}' for name in found.classes]
      assert_values(line(rows, POOLED, shown), pooled, columns, 1e-4)
      mean = np.nanmean(by_fold, axis=0)
      assert_values(line(rows, MEAN, shown), mean, columns, 1e-4)
      low, high = (line(rows, f'95 % interval, {e}', shown) for e in ENDS)
      for column, value in zip(columns, pooled, strict=True):
        assert float(low[column]) <= value <= float(high[column])
    assert_published(rows, 'table_1', shown)
    # The paper's value stands beside what it may be compared with.
    own = [row['from'] for row in rows if row['model'] == shown]
    assert own[0] == MEAN and own[1].startswith('Zheng et al. 2024, Table 1')


def test_table_2_tells_folds_from_their_mean(commands, tmp_path, capsys):
  run('--table=2', K, '--models=kmil,transmil', f'--results_dir={tmp_path}')
  assert [c[2] for c in commands.seen] == ['--model=transmil', '--model=kmil']
  assert all('--external_phantom=True' in c for c in commands.seen)
  text = capsys.readouterr().out
  assert 'likely an error of copying' in text and 'external: 16 slides' in text
  rows = read_csv(tmp_path, 'table_2')
  for model in ('transmil', 'kmil'):
    found, shown = results(tmp_path / f'{model}_origin_s2023'), MODELS[model]
    parts = predictions.read_external(found.folder, found.classes)
    each = np.array([scores(p) for p in parts.values()])
    assert_values(line(rows, MEAN, shown), each.mean(0))
    assert_values(line(rows, 'std over', shown), each.std(0, ddof=1))
    whole = line(rows, 'here, mean probability', shown)
    assert_values(whole, scores(found.external()))
    assert_published(rows, 'table_2', shown)


@pytest.mark.parametrize('number', [4, 5])
def test_ablations_are_shown_in_both_orientations(
  commands, tmp_path, capsys, number
):
  run(f'--table={number}', K, f'--results_dir={tmp_path}')
  ((*command, _, _),) = commands.seen
  assert command == ['-m', 'experiments.ablations']
  text = capsys.readouterr().out
  assert 'can only be a quantile' in text and 'paired resamples' in text
  name = f'table_{number}'
  rows, root = read_csv(tmp_path, name), tmp_path / 'ablations_origin_s2023'
  first = results(root / 'all').test()
  # Which instances go, by the variance, as the released code ranks them.
  kinds = ('lowest', 'highest')[:: 1 if number == 4 else -1]
  for score, kind in zip(('var', 'one_minus_var'), kinds, strict=True):
    settings = getattr(ablation, f'TABLE_{number}')[score]
    assert [(f'{t:g}',) for t in settings] == [*PAPER[name].values]
    for t, setting in settings.items():
      share = t if number == 4 else 1 - t
      assert setting == (f'{kind}_{share:.2f}' if share else 'all')
      p, labels = results(root / setting).test(), (score, f'{t:g}')
      here = line(rows, POOLED, *labels)
      assert_values(here, scores(p))
      told = f'{kind} {100 * share:.0f} % of' if share else 'nothing'
      assert here['dropped'].startswith(told)
      assert_published(rows, name, *labels, key=labels[1:])
      if not share:
        continue
      # It is compared with dropping nothing, on the same slides.
      change = line(rows, 'here, minus nothing dropped', *labels)
      assert_values(change, np.subtract(scores(p), scores(first)))
      a, b = (intervals.replicates(x.label, x.prob, x.case) for x in (first, p))
      draws = [b[metric] - a[metric] for metric in COLUMNS.values()]
      bounds = np.nanpercentile(draws, [2.5, 97.5], 1)
      for end, bound in zip(ENDS, bounds, strict=True):
        own = line(rows, f'95 % interval of that, {end}', *labels)
        assert_values(own, bound)


def test_table_6_has_true_aurocs_and_no_class_that_a_task_lacks(
  commands, tmp_path, capsys
):
  run('--table=6', K, f'--results_dir={tmp_path}')
  assert [c[3] for c in commands.seen] == ['--task=a', '--task=b', '--task=c']
  text = capsys.readouterr().out
  assert (tmp_path / 'paper_s2023' / 'table_6.md').read_text() == text
  assert '0.8348 (B) and 0.9426 (C)' in text
  rows = read_csv(tmp_path, 'table_6')
  for task in 'abc':
    found = results(tmp_path / f'kmil_{task}_s2023')
    p, here = found.test(), line(rows, POOLED, task.upper())
    assert_values(here, scores(p))
    assert_published(rows, 'table_6', task.upper())
    recalls = metrics.evaluate(p.label, p.prob)['class_recall']
    assert_values(here, recalls, [f'ACC: {name}' for name in found.classes])
    assert_values(here, [recalls.mean()], ['balanced ACC'])
    classes = [c for c in here if c.startswith('ACC: ') and here[c]]
    assert len(classes) == len(found.classes)


def test_table_3_adds_up_both_stages(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(cost, 'flops', lambda *_: None)  # A backend without it.
  run('--table=3', '--models=kmil', f'--results_dir={tmp_path}')
  rows = read_csv(tmp_path, 'table_3')
  here = line(rows, 'here', 'KMIL')
  # ABMIL and DSMIL, both on all instances.
  sums = [(530_182 + 178_442) / 1000, 52.45952 + 16.02048]
  columns = ['parameters (K)', 'operations (M), as the paper counts']
  assert_values(here, sums, columns, 1e-3)
  assert 0 < float(here['time (s)']) < 10
  assert here["operations (M), XLA's count"] == ''
  assert_published(rows, 'table_3', 'KMIL')
  assert 'phantom' not in capsys.readouterr().out


def test_the_published_numbers_hang_together():
  paper = {name: found.values for name, found in PAPER.items()}
  # The classes of Table 1 give KMIL's F1 of the text and of Table 4.
  kmil = list(paper['table_1']['KMIL',].values())
  r, p = np.reshape(kmil, (2, 5)) / 100
  text = paper['figure_2']['KMIL',]
  macro = (2 * r * p / (r + p)).mean()
  assert macro == pytest.approx(text['F1 score'], abs=1e-3)
  assert paper['table_4']['0.1',] == text
  assert paper['table_4']['0',] == paper['table_5']['1',]
  assert paper['figure_3'] == {('KMIL', 'internal'): text} | {
    (*labels, 'external'): values for labels, values in paper['table_2'].items()
  }
  for (task,), known in paper['table_6'].items():
    recalls = [v for name, v in known.items() if name.startswith('ACC: ')]
    shown = {name: known[name] for name in COLUMNS}
    assert paper['figure_4'][task, 'internal'] == shown
    if task != 'A':
      # What the paper calls AUROC is its balanced accuracy.
      assert known['AUROC'] == known['balanced ACC']
      assert known['AUROC'] == pytest.approx(np.mean(recalls), abs=6e-5)
