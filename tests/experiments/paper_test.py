"""The paper's tables: what is run for them, and each number in its place."""

import csv

import numpy as np
import paper_folders
from paper_folders import K, run
import pytest
from sklearn import metrics as sklearn_metrics

from experiments import papers
from experiments.bags import ablation
from experiments.evaluation import comparison, predictions
from experiments.papers import runs
from experiments.papers.tables import MODELS
from kmil_jax import cost, intervals

COLUMNS = ('ACC', 'F1 score', 'AUROC')
POOLED = 'here, all folds pooled'
MEAN = 'here, mean of folds'
ENSEMBLE = 'here, mean probability'


@pytest.fixture
def commands(monkeypatch):
  made = paper_folders.Commands()
  monkeypatch.setattr(runs.subprocess, 'run', made)
  return made


def read_csv(folder, name):
  with (folder / 'paper_s2023' / f'{name}.csv').open(newline='') as f:
    return list(csv.DictReader(f))


def line(rows, source, *labels):
  """The one row of a table with these labels, that begin with its columns."""
  (found,) = [
    row
    for row in rows
    if row['from'].startswith(source)
    and all(label in list(row.values()) for label in labels)
  ]
  return found


def results(folder):
  return comparison.read(folder, folder.name)


def f1(p):
  pred = p.prob.argmax(1)
  return sklearn_metrics.f1_score(p.label, pred, average='macro')


def auroc(p):
  if p.prob.shape[1] == 2:
    return sklearn_metrics.roc_auc_score(p.label, p.prob[:, 1])
  return sklearn_metrics.roc_auc_score(p.label, p.prob, multi_class='ovr')


def percent(kind, p):
  score = getattr(sklearn_metrics, f'{kind}_score')
  classes, options = range(p.prob.shape[1]), {'zero_division': np.nan}
  pred = p.prob.argmax(1)
  return 100 * score(p.label, pred, labels=classes, average=None, **options)


def scores(p):
  return [(p.label == p.prob.argmax(1)).mean(), f1(p), auroc(p)]


def assert_values(row, expected, columns=COLUMNS, width=2e-6):
  values = [float(row[name]) for name in columns]
  assert values == pytest.approx(list(expected), abs=width)


def assert_published(row, table, *labels):
  for column, value in papers.read('zheng')[table].values[labels].items():
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
    by_fold = [parts['test'] for parts in found.folds.values()]
    for kind in ('recall', 'precision'):
      columns = [f'{kind}: {name}' for name in found.classes]
      pooled = percent(kind, found.test())
      assert_values(line(rows, POOLED, shown), pooled, columns, 1e-4)
      mean = np.nanmean([percent(kind, p) for p in by_fold], axis=0)
      assert_values(line(rows, MEAN, shown), mean, columns, 1e-4)
      low, high = (
        line(rows, f'95 % interval, {end}', shown) for end in ('low', 'high')
      )
      for column, value in zip(columns, pooled, strict=True):
        assert float(low[column]) <= value <= float(high[column])
    assert_published(line(rows, 'Zheng', shown), 'table_1', shown)
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
    assert_values(line(rows, ENSEMBLE, shown), scores(found.external()))
    assert_published(line(rows, 'Zheng', shown), 'table_2', shown)


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
  # Which instances go, by the variance, as the released code ranks them.
  kinds = ('lowest', 'highest')[:: 1 if number == 4 else -1]
  first = results(root / 'all').test()
  for score, kind in zip(('var', 'one_minus_var'), kinds, strict=True):
    settings = getattr(ablation, f'TABLE_{number}')[score]
    assert [(f'{t:g}',) for t in settings] == [
      *papers.read('zheng')[name].values
    ]
    for t, setting in settings.items():
      share = t if number == 4 else 1 - t
      assert setting == (f'{kind}_{share:.2f}' if share else 'all')
      p, labels = results(root / setting).test(), (score, f'{t:g}')
      here = line(rows, POOLED, *labels)
      assert_values(here, scores(p))
      told = f'{kind} {100 * share:.0f} % of' if share else 'nothing'
      assert here['dropped'].startswith(told)
      assert_published(line(rows, 'Zheng', *labels), name, labels[1])
      mine = [r for r in rows if (r['score'], r['t']) == labels]
      if share:
        assert_changes(mine, first, p)
      else:
        assert not [row for row in mine if 'minus' in row['from']]


def assert_changes(rows, first, p):
  """A setting is compared with dropping nothing, on the same slides."""
  change = line(rows, 'here, minus nothing dropped')
  assert_values(change, np.subtract(scores(p), scores(first)))
  draws = [intervals.replicates(x.label, x.prob, x.case) for x in (first, p)]
  names = ('accuracy', 'f1_macro', 'auroc')
  change = [draws[1][name] - draws[0][name] for name in names]
  ends = np.nanpercentile(change, [2.5, 97.5], 1)
  for end, want in zip(('low', 'high'), ends, strict=True):
    assert_values(line(rows, f'95 % interval of that, {end}'), want)


def test_table_6_has_true_aurocs_and_no_class_that_a_task_lacks(
  commands, tmp_path, capsys
):
  run('--table=6', K, f'--results_dir={tmp_path}')
  assert [c[3] for c in commands.seen] == ['--task=a', '--task=b', '--task=c']
  text = capsys.readouterr().out
  assert (tmp_path / 'paper_s2023' / 'table_6.md').read_text() == text
  rows = read_csv(tmp_path, 'table_6')
  for task in 'abc':
    found = results(tmp_path / f'kmil_{task}_s2023')
    p, here = found.test(), line(rows, POOLED, task.upper())
    assert_values(here, scores(p))
    assert_published(line(rows, 'Zheng', task.upper()), 'table_6', task.upper())
    recalls = []
    for name in ('non-tumor', 'lymphoma', 'metastatic'):
      if name not in found.classes:
        assert here[f'ACC: {name}'] == ''
        continue
      mine = p.label == found.classes.index(name)
      recalls.append((p.prob.argmax(1) == p.label)[mine].mean())
      assert_values(here, recalls[-1:], [f'ACC: {name}'])
    assert_values(here, [np.mean(recalls)], ['balanced ACC'])
  assert '0.8348 (B) and 0.9426 (C)' in text
  row_b = next(x for x in text.splitlines() if x.startswith('| B |'))
  assert row_b.split(' | ')[4] == 'n/a'


def test_table_3_adds_up_both_stages(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(cost, 'flops', lambda *_: None)  # A backend without it.
  run('--table=3', '--models=kmil', f'--results_dir={tmp_path}')
  rows = read_csv(tmp_path, 'table_3')
  here = line(rows, 'here', 'KMIL')
  # ABMIL and DSMIL, both on all instances.
  params = (530_182 + 178_442) / 1000
  operations = 'operations (M), as the paper counts'
  counted = 52.45952 + 16.02048
  assert_values(here, [params, counted], ['parameters (K)', operations], 1e-3)
  assert 0 < float(here['time (s)']) < 10
  assert here["operations (M), XLA's count"] == ''
  assert_published(line(rows, 'Zheng', 'KMIL'), 'table_3', 'KMIL')
  assert 'phantom' not in capsys.readouterr().out


def test_the_published_numbers_hang_together():
  paper = {name: found.values for name, found in papers.read('zheng').items()}
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
    assert len(recalls) == len(paper_folders.CLASSES[task.lower()])
    shown = {name: known[name] for name in COLUMNS}
    assert paper['figure_4'][task, 'internal'] == shown
    if task != 'A':
      # What the paper calls AUROC is its balanced accuracy.
      assert known['AUROC'] == known['balanced ACC']
      assert known['AUROC'] == pytest.approx(np.mean(recalls), abs=6e-5)
