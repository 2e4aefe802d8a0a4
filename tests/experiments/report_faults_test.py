"""What a report says of folders that lack something, and its charts."""

import json
import shutil

from absl import app, flags
from absl.testing import flagsaver
import numpy as np
import pytest
import report_folder
from report_folder import Page

from experiments import report
from experiments.reporting import (
  beside,
  charts,
  page,
  pictures,
  record as records,
)
from experiments.run.results import ResultsError


def test_what_is_undefined_is_na(small):
  summary = json.loads((small / 'summary.json').read_text())
  assert summary['metrics']['auroc']['std'] is None
  words = Page(page.write(small).read_text(encoding='utf-8')).text
  assert 'Second cohort' not in words
  assert 'Warning: 2 folds of 3 missing' in words and ' n/a ' in words


def test_pictures_that_lack_or_are_damaged_are_named(small, tmp_path):
  shutil.copytree(small, tmp_path, dirs_exist_ok=True)
  folder = tmp_path / 'figures' / 'heat_maps'
  (folder / 'fold_0_0_3é.png').unlink()
  (folder / 'fold_0_0_4é.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  (tmp_path / 'figures' / 'roc.png').write_bytes(b'no picture')
  words = Page(page.write(tmp_path).read_text(encoding='utf-8')).text
  assert '1 slide without a heat map' in words and '0_3é.' in words
  flags = report_folder.FLAGS | {'heat_maps': 3}  # What is beyond, nobody asked
  report_folder.change(tmp_path, 'config.json', flags=flags)
  assert not pictures.heat_maps(records.read(tmp_path), []).unmapped
  assert 'figures/heat_maps/fold_0_0_4é.png cannot be read' in words
  assert 'ROC curves' not in words and 'Confusion matrix' in words


def test_a_model_without_epochs_has_a_page_without_them(small, tmp_path):
  folder = tmp_path / 'mean_pooling_origin_s7'
  shutil.copytree(small, folder)
  report_folder.change(folder, 'summary.json', model='mean_pooling')
  (folder / 'fold_0' / 'metrics.jsonl').unlink()
  (folder / 'cohort.csv').unlink()  # As in folders of older versions.
  words = Page(page.write(folder).read_text(encoding='utf-8')).text
  assert 'mean_pooling: 3-fold cross-validation' in words
  assert 'chose nothing but the temperature' in words
  assert 'Adam' not in words and 'Validation loss' not in words
  assert 'all 18 ' in words  # Of the fold that is done: test and validation.


def test_ablation_and_cost_beside_the_folder(small, tmp_path):
  folder = tmp_path / 'kmil_x_s7'
  shutil.copytree(small, folder)
  summary = (folder / 'summary.json').read_text()
  config = json.loads((folder / 'config.json').read_text())
  for name, inputs in (
    ('all', report_folder.INPUTS),
    ('lowest_0.10', report_folder.INPUTS),
    ('highest_0.10', {'features_sha256': 'of others'}),
  ):
    at = tmp_path / 'ablations_origin_s7' / name
    at.mkdir(parents=True)
    (at / 'config.json').write_text(json.dumps(config | {'inputs': inputs}))
    (at / 'summary.json').write_text(summary)
  cost = {'kmil': {'params': 178442, 'macs': 5, 'flops_xla': None}}
  (tmp_path / 'cost.json').write_text(json.dumps(cost))
  found = beside.ablation(records.read(folder))
  assert [name for name, _ in found] == ['all', 'lowest_0.10']
  words = Page(page.write(folder).read_text(encoding='utf-8')).text
  assert 'all kept' in words and 'lowest 10 % dropped' in words
  assert 'highest 10 %' not in words
  assert '178,442' in words


@pytest.mark.parametrize('low,high', [(1, 1), (3, 4), (19, 56), (1, 200_000)])
def test_every_bag_is_in_one_bar(low, high):
  sizes = np.random.default_rng(0).integers(low, high + 1, 300)
  chart = charts.sizes(np.r_[sizes, low, high])
  counts = [int(bar.text.split(': ')[1].split()[0]) for bar in chart.bars]
  assert sum(counts) == 302 and counts[0] and counts[-1]
  top = max(counts)
  for bar, count in zip(chart.bars, counts, strict=True):
    assert bar.height == pytest.approx(
      count / top * max(b.height for b in chart.bars)
    )
    assert 0 <= bar.left < bar.right <= 1 + 1e-9
  assert all(0 <= tick.at <= 1 for tick in (*chart.x, *chart.y))


def test_curves_can_be_read_off_their_axes():
  values = [3.0, -2.5, 8.25]
  history = {4: [{'epoch': e, 'y': y} for e, y in enumerate(values)], 5: []}
  chart = charts.curves(history, 'y', 'title')
  points = [
    [float(x) for x in point.split(',')]
    for point in chart.lines[0].points.split()
  ]
  low, high = (float(chart.y[i].text) for i in (0, -1))
  got = [low + (100 - y) / 100 * (high - low) for _, y in points]
  np.testing.assert_allclose(got, values, atol=0.002 * (high - low))
  assert [x for x, _ in points] == [0, 50, 100]
  assert charts.curves({0: [{'epoch': 0, 'y': 1.0}]}, 'y', '') is None


@pytest.mark.parametrize(
  'name,content,message',
  [
    ('summary.json', None, 'no such file'),
    ('config.json', '{"flags": ', 'is damaged'),
    ('config.json', '[]', 'is not the record of a run'),
    ('config.json', '{}', 'lacks flags, inputs, made_by'),
    ('cohort.csv', 'case_id,slide_id\na,b\n', 'is damaged'),
    ('cohort.csv', '', 'is damaged'),
    ('fold_0/metrics.jsonl', '{"epoch": 1', 'is damaged'),
    ('fold_0/predictions.csv', None, 'summary.json is of the folds [0]'),
  ],
)
def test_a_folder_that_cannot_be_read_gets_one_clear_message(
  small, name, content, message
):
  path = small / name
  before = path.read_bytes()
  if content is None:
    path.unlink()
  else:
    path.write_text(content)
  try:
    with pytest.raises(ResultsError, match=name.split('/')[-1][:7]) as error:
      page.write(small)
    assert message in str(error.value)
    with flagsaver.flagsaver(), pytest.raises(SystemExit, match='error: '):
      report.main(flags.FLAGS(['report', f'--run={small}']))
  finally:
    path.write_bytes(before)


def test_the_script_writes_the_page_of_a_folder(small, capsys):
  with flagsaver.flagsaver():
    report.main(flags.FLAGS(['report', f'--run={small}']))
  assert f'report in {small / "report.html"}' in capsys.readouterr().out
  with flagsaver.flagsaver(), pytest.raises(app.UsageError, match='--run'):
    report.main(flags.FLAGS(['report']))
