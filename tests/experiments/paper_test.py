"""The paper's tables: what is run for them, and each number in its place."""

import csv
import pathlib

import numpy as np
import paper_folders
from paper_folders import K, run, value
import pytest
from sklearn import metrics as sklearn_metrics

from experiments import (
  ablation_settings,
  files,
  paper_numbers,
  paper_runs,
  paper_text,
  predictions,
)
from kmil_jax import cost, intervals

MODELS = tuple(paper_numbers.MODELS)


@pytest.fixture
def commands(monkeypatch):
  made = paper_folders.Commands()

  def run_command(command, **options):
    done = made(command, **options)
    for at in pathlib.Path(value(command, '--results_dir')).rglob('fold_*'):
      path = at.parent / 'splits' / f'splits_{at.name[5:]}.csv'
      files.write_csv(path, [['train', 'val', 'test']])
    return done

  monkeypatch.setattr(paper_runs.subprocess, 'run', run_command)
  return made


def read_csv(folder, name):
  with (folder / 'paper_s2023' / f'{name}.csv').open(newline='') as f:
    return list(csv.DictReader(f))


def line(rows, source, **labels):
  """The one row of a table with these labels."""
  (found,) = [
    row
    for row in rows
    if row['from'] == source and all(row[k] == v for k, v in labels.items())
  ]
  return found


def pooled(folder, task='origin'):
  classes = paper_folders.CLASSES[task]
  return paper_runs.test_parts(folder, classes)


def f1(p):
  pred = p.prob.argmax(1)
  return sklearn_metrics.f1_score(p.label, pred, average='macro')


def auroc(p):
  if p.prob.shape[1] == 2:
    return sklearn_metrics.roc_auc_score(p.label, p.prob[:, 1])
  return sklearn_metrics.roc_auc_score(p.label, p.prob, multi_class='ovr')


def accuracy(p):
  return (p.label == p.prob.argmax(1)).mean()


def assert_metrics(row, expected):
  for name, number in zip(('ACC', 'F1 score', 'AUROC'), expected, strict=True):
    assert float(row[name]) == pytest.approx(number, abs=2e-6)


def published(metrics):
  return [metrics[name] for name in ('accuracy', 'f1_macro', 'auroc')]


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
  assert 'the phantom cohort, 60 slides of 30 cases; trained with' in out
  assert '--epochs=7' in out and 'nothing about the accuracy' in out
  rows = read_csv(tmp_path, 'table_1')
  for model, shown in paper_numbers.MODELS.items():
    p = pooled(tmp_path / f'{model}_origin_s2023')
    hit = (p.label == p.prob.argmax(1)) * 100
    here = line(rows, 'here', model=shown)
    paper_row = line(rows, 'Zheng et al. 2024', model=shown)
    for c, name in enumerate(paper_numbers.CLASSES):
      recall, precision = f'recall: {name}', f'precision: {name}'
      assert float(here[recall]) == pytest.approx(
        hit[p.label == c].mean(), abs=1e-4
      )
      said = p.prob.argmax(1) == c
      assert float(here[precision]) == pytest.approx(hit[said].mean(), abs=1e-4)
      low = line(rows, '95 % interval, low', model=shown)
      high = line(rows, '95 % interval, high', model=shown)
      assert float(low[recall]) <= float(here[recall]) <= float(high[recall])
      known = paper_numbers.TABLE_1[model]
      assert float(paper_row[recall]) == known['recall'][c]
      assert float(paper_row[precision]) == known['precision'][c]


def test_table_2_tells_folds_from_their_mean(commands, tmp_path, capsys):
  run('--table=2', K, '--models=kmil,transmil', f'--results_dir={tmp_path}')
  assert [c[2] for c in commands.seen] == ['--model=transmil', '--model=kmil']
  assert all('--external_phantom=True' in c for c in commands.seen)
  text = capsys.readouterr().out
  assert 'likely an error of copying' in text and 'external: 16 slides' in text
  rows = read_csv(tmp_path, 'table_2')
  for model in ('transmil', 'kmil'):
    folder = tmp_path / f'{model}_origin_s2023'
    parts = predictions.read_external(folder, paper_numbers.CLASSES)
    each = np.array([[accuracy(p), f1(p), auroc(p)] for p in parts.values()])
    shown = {'model': paper_numbers.MODELS[model]}
    assert_metrics(line(rows, 'here, mean of folds', **shown), each.mean(0))
    assert_metrics(line(rows, 'std over folds', **shown), each.std(0, ddof=1))
    whole = predictions.mean(parts)
    together = [accuracy(whole), f1(whole), auroc(whole)]
    assert_metrics(line(rows, 'here, mean probability', **shown), together)
    assert_metrics(
      line(rows, 'Zheng et al. 2024', **shown),
      published(paper_numbers.TABLE_2[model]),
    )


@pytest.mark.parametrize('number', [4, 5])
def test_ablations_are_shown_in_both_orientations(
  commands, tmp_path, capsys, number
):
  run(f'--table={number}', K, f'--results_dir={tmp_path}')
  ((*command, _, _),) = commands.seen
  assert command == ['-m', 'experiments.ablations']
  text = capsys.readouterr().out
  assert 'can only be a quantile' in text and 'paired resamples' in text
  rows = read_csv(tmp_path, f'table_{number}')
  known = getattr(paper_numbers, f'TABLE_{number}')
  settings = getattr(ablation_settings, f'TABLE_{number}')
  # Which instances go, by the variance, as the released code ranks them.
  kept = {4: 'lowest', 5: 'highest'}[number]
  other = {'lowest': 'highest', 'highest': 'lowest'}[kept]
  all_kept = pooled(tmp_path / 'ablations_origin_s2023' / 'all')
  for score, kind in (('var', kept), ('one_minus_var', other)):
    for t in known:
      share = t if number == 4 else 1 - t
      setting = f'{kind}_{share:.2f}' if share else 'all'
      assert settings[score][t] == setting
      p = pooled(tmp_path / 'ablations_origin_s2023' / setting)
      here = line(rows, 'here', score=score, t=f'{t:g}')
      assert_metrics(here, [accuracy(p), f1(p), auroc(p)])
      told = f'{kind} {100 * share:.0f} % of' if share else 'nothing'
      assert here['dropped'].startswith(told)
      paper_row = line(rows, 'Zheng et al. 2024', score=score, t=f'{t:g}')
      assert_metrics(paper_row, published(known[t]))
      mine = [r for r in rows if (r['score'], r['t']) == (score, f'{t:g}')]
      assert_changes(mine, all_kept, p, share)


def assert_changes(rows, all_kept, p, share):
  """A setting is compared with dropping nothing, on the same slides."""
  if not share:
    assert not [row for row in rows if 'minus' in row['from']]
    return
  before, after = ([f(x) for f in (accuracy, f1, auroc)] for x in (all_kept, p))
  change = line(rows, 'here, minus nothing dropped')
  assert_metrics(change, np.subtract(after, before))
  draws = [
    published(intervals.replicates(x.label, x.prob, x.case))
    for x in (all_kept, p)
  ]
  ends = np.nanpercentile(np.subtract(*draws[::-1]), [2.5, 97.5], 1)
  for end, want in zip(('low', 'high'), ends, strict=True):
    assert_metrics(line(rows, f'95 % interval of that, {end}'), want)


def test_table_6_has_true_aurocs_and_no_class_that_a_task_lacks(
  commands, tmp_path, capsys
):
  run('--table=6', K, f'--results_dir={tmp_path}')
  assert [c[3] for c in commands.seen] == ['--task=a', '--task=b', '--task=c']
  text = capsys.readouterr().out
  rows = read_csv(tmp_path, 'table_6')
  for task, known in paper_numbers.TABLE_6.items():
    p = pooled(tmp_path / f'kmil_{task}_s2023', task)
    here = line(rows, 'here', task=task.upper())
    paper_row = line(rows, 'Zheng et al. 2024', task=task.upper())
    assert_metrics(here, [accuracy(p), f1(p), auroc(p)])
    assert_metrics(paper_row, published(known))
    recalls = []
    for name in ('non-tumor', 'lymphoma', 'metastatic'):
      if name not in paper_folders.CLASSES[task]:
        assert here[f'ACC: {name}'] == paper_row[f'ACC: {name}'] == ''
        continue
      c = paper_folders.CLASSES[task].index(name)
      recalls.append((p.prob.argmax(1) == c)[p.label == c].mean())
      assert float(here[f'ACC: {name}']) == pytest.approx(recalls[-1], abs=1e-6)
      assert float(paper_row[f'ACC: {name}']) == known['recall'][name]
    balanced = float(here['balanced ACC'])
    assert balanced == pytest.approx(np.mean(recalls), abs=1e-6)
    if task == 'a':
      assert paper_row['balanced ACC'] == ''
    else:
      # What the paper calls AUROC is its balanced accuracy.
      of_paper = float(paper_row['balanced ACC'])
      mean = np.mean(list(known['recall'].values()))
      assert of_paper == float(paper_row['AUROC'])
      assert of_paper == pytest.approx(mean, abs=6e-5)
  assert '0.8348 (B) and 0.9426 (C)' in text
  row_b = next(x for x in text.splitlines() if x.startswith('| B | here'))
  assert row_b.split(' | ')[4] == 'n/a'


def test_table_3_adds_up_both_stages(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(cost, 'flops', lambda *_: None)  # A backend without it.
  run('--table=3', '--models=kmil', f'--results_dir={tmp_path}')
  rows = read_csv(tmp_path, 'table_3')
  operations = 'operations (M), as the paper counts'
  here = line(rows, 'here', model='KMIL')
  known = line(rows, 'Zheng et al. 2024', model='KMIL')
  # ABMIL and DSMIL, both on all instances.
  params = 530_182 + 178_442
  assert float(here['parameters (K)']) * 1000 == pytest.approx(params)
  counted = 52.45952 + 16.02048
  assert float(here[operations]) == pytest.approx(counted)
  assert 0 < float(here['time (s)']) < 10
  assert here["operations (M), XLA's count"] == ''
  assert known[operations] == '116.53' and known['time (s)'] == '2.916'
  assert 'phantom' not in capsys.readouterr().out


def test_markdown_and_csv_agree(commands, tmp_path, capsys):
  run('--table=6', K, f'--results_dir={tmp_path}')
  text = capsys.readouterr().out
  assert (tmp_path / 'paper_s2023' / 'table_6.md').read_text() == text
  cells = [
    [cell.strip() for cell in row.strip('|').split('|')]
    for row in text.splitlines()
    if row.startswith('|')
  ]
  header, _, *body = cells
  rows = read_csv(tmp_path, 'table_6')
  assert header == list(rows[0])
  shown = lambda x: f'{float(x):.4f}' if x else 'n/a'
  values = lambda row: [shown(row[name]) for name in header[2:]]
  places, task = iter(rows), None
  for row in body:
    task = row[0] or task
    first = next(places)
    assert first['task'] == task
    if row[1] == '95 % interval':
      pairs = zip(values(first), values(next(places)), strict=True)
      both = lambda low, high: low if low == 'n/a' else f'{low} to {high}'
      assert row[2:] == [both(*pair) for pair in pairs]
    else:
      assert first['from'] == row[1] and values(first) == row[2:]
  assert next(places, None) is None


def test_what_is_undefined_is_not_a_number():
  entry = paper_text.Entry(
    ('a|b',), {'here': [None, 0.5], 'interval': [(None, None), (0.25, 0.75)]}
  )
  table = paper_text.Table(
    'name', 'title', ('model',), ('x', 'y'), (entry,), (2, 1), ('note',)
  )
  assert '| a\\|b | here | n/a | 0.5 |' in table.markdown()
  assert '|  | 95 % interval | n/a | 0.2 to 0.8 |' in table.markdown()
  assert table.rows()[1:] == [
    ['a|b', 'here', '', '0.5'],
    ['a|b', '95 % interval, low', '', '0.25'],
    ['a|b', '95 % interval, high', '', '0.75'],
  ]


def test_the_published_numbers_hang_together():
  # Their own classes give KMIL's F1; the cells of one table give another's.
  kmil = paper_numbers.TABLE_1['kmil']
  r, p = (np.array(kmil[kind]) / 100 for kind in ('recall', 'precision'))
  macro = (2 * r * p / (r + p)).mean()
  assert macro == pytest.approx(
    paper_numbers.TABLE_4[0.1]['f1_macro'], abs=1e-3
  )
  assert paper_numbers.TABLE_4[0.1] == paper_numbers.INTERNAL['kmil']
  assert paper_numbers.TABLE_4[0] == paper_numbers.TABLE_5[1]
  for task, known in paper_numbers.TABLE_6.items():
    assert set(known['recall']) == set(paper_folders.CLASSES[task])
