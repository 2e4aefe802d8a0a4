"""The figures show the values of their tables, and draw what is undefined."""

from experiments.predictions import Predictions
from matplotlib import figure
import numpy as np
import paper_folders
from paper_folders import K, run
from PIL import Image
import pytest

from experiments import (
  paper_figure_tables,
  paper_figures,
  paper_numbers,
  paper_runs,
  paper_tables,
)
from kmil_jax import metrics


@pytest.mark.parametrize('classes', [2, 3, 5])
@pytest.mark.parametrize('ties', [False, True])
def test_the_area_below_the_curve_is_the_auroc_of_the_tables(classes, ties):
  p = paper_folders.part(0, 60, range(classes), 1.0, 'x')
  prob = np.round(p.prob, 1) if ties else p.prob
  p = Predictions(p.case, p.slide, p.label, prob)
  x, y = paper_figures.mean_roc(p)
  assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
  assert (np.diff(x) >= 0).all() and (np.diff(y) >= -1e-12).all()
  area = np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)
  value = metrics.evaluate(p.label, p.prob)['auroc']
  assert area == pytest.approx(value, abs=1e-12)


def test_a_class_without_slides_has_no_curve():
  p = paper_folders.part(0, 20, range(3), 1.0, 'x')
  p = Predictions(p.case, p.slide, np.minimum(p.label, 1), p.prob)
  assert np.isnan(paper_figures.mean_roc(p)).all()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  """Folders of the five models and the three tasks, drawn as all figures."""
  folder = tmp_path_factory.mktemp('results')
  commands = paper_folders.Commands()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(paper_runs.subprocess, 'run', commands)
    for number in (3, 4):
      run(f'--figure={number}', K, f'--results_dir={folder}')
  assert len(commands.seen) == 8
  assert all('--external_phantom=True' in command for command in commands.seen)
  return folder


def summaries(results, keys, name='{}_origin_s2023'):
  return {k: paper_runs.summary(results / name.format(k)) for k in keys}


def test_pictures_lie_beside_their_numbers(results):
  for number in (3, 4):
    stem = results / 'paper_s2023' / f'figure_{number}'
    picture = np.asarray(Image.open(stem.with_suffix('.png')).convert('RGB'))
    assert min(picture.shape[:2]) > 1000 and picture.std() > 10
    text = stem.with_suffix('.md').read_text()
    assert 'external: 16 slides' in text and 'say nothing about' in text
    assert stem.with_suffix('.csv').exists()
  assert 'task C: 60 slides' in text and 'balanced accuracy' in text


def test_bars_and_diamonds_are_the_numbers(results):
  found = summaries(results, paper_numbers.MODELS)
  table = paper_figure_tables.of_models(found)
  series = [('C0', entry.lines) for entry in table.entries]
  ax = figure.Figure().subplots()
  paper_figures._bars(ax, table.columns, series)
  heights = [bar.get_height() for bar in ax.patches]
  names = ('accuracy', 'f1_macro', 'auroc')
  assert heights == [
    summary['metrics'][name]['pooled']
    for summary in found.values()
    for name in names
  ]
  shown = {line.get_marker(): [] for line in ax.lines}
  for line in ax.lines:
    shown[line.get_marker()].append(np.ravel(line.get_ydata()).tolist())
  # The paper prints the values of KMIL alone.
  assert shown['D'] == [[0.9018], [0.9013], [0.9802]]
  assert shown['_'] == [
    [summary['metrics'][name]['ci_low'], summary['metrics'][name]['ci_high']]
    for summary in found.values()
    for name in names
  ]
  lefts = [bar.get_x() for bar in ax.patches]
  rights = [bar.get_x() + bar.get_width() for bar in ax.patches]
  order = np.argsort(lefts)
  assert (np.take(rights, order)[:-1] <= np.take(lefts, order)[1:]).all()


def test_both_cohorts_stand_side_by_side(results):
  table = paper_figure_tables.of_models_on_both(
    summaries(results, paper_numbers.MODELS)
  )
  of = {entry.labels: entry.lines for entry in table.entries}
  summary = paper_runs.summary(results / 'kmil_origin_s2023')
  values = summary['external']['metrics']
  names = ('accuracy', 'f1_macro', 'auroc')
  external = of['KMIL', 'external']
  assert external['ensemble'] == [values[name]['ensemble'] for name in names]
  assert external['paper'] == [0.7341, 0.6766, 0.9400]
  assert of['KMIL', 'internal']['paper'] == [0.9018, 0.9013, 0.9802]
  assert of['DTFD', 'internal']['paper'] == [None] * 3
  tasks = paper_figure_tables.of_tasks_on_both(
    summaries(results, 'abc', 'kmil_{}_s2023')
  )
  of = {entry.labels: entry.lines for entry in tasks.entries}
  assert of['B', 'internal']['paper'] == [0.8340, 0.8322, 0.8348]
  assert of['B', 'external']['paper'] == [None] * 3


def test_what_is_undefined_is_written_where_its_bar_would_stand():
  ax = figure.Figure().subplots()
  lines = {'here': [None, 0.5], 'interval': [(None, None), (0.4, 0.6)]}
  paper_figures._bars(ax, 'xy', [('C0', {**lines, 'paper': [0.3, None]})])
  assert [bar.get_height() for bar in ax.patches] == [0.5]
  (text,) = ax.texts
  assert text.get_text() == 'n/a' and 0 < text.get_position()[0] < 1


def test_figure_2_draws_recall_and_precision_by_class(results):
  found = summaries(results, ('abmil', 'kmil'))
  table = paper_figure_tables.of_models(found)
  by_class = paper_tables.recall_and_precision({'kmil': found['kmil']})
  drawing = paper_figures.of_models(table, by_class, 'drawn')
  per_class = found['kmil']['per_class'].values()
  published = paper_numbers.TABLE_1['kmil']
  for ax, kind in zip(drawing.axes[1:], ('recall', 'precision'), strict=True):
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([row[kind] for row in per_class])
    diamonds = [x.get_ydata()[0] for x in ax.lines if x.get_marker() == 'D']
    assert diamonds == pytest.approx([x / 100 for x in published[kind]])
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == list(paper_numbers.CLASSES)
