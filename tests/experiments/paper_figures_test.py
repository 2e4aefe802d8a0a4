"""The figures show the values of their tables, and draw what is undefined."""

from matplotlib import figure
import numpy as np
import paper_folders
from paper_folders import K, run
from PIL import Image
import pytest

from experiments import papers
from experiments.evaluation import comparison
from experiments.evaluation.predictions import Predictions
from experiments.papers import figures, runs, tables
from experiments.papers.tables import MODELS
from kmil_jax import metrics

NAMES = ('accuracy', 'f1_macro', 'auroc')


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


def test_a_class_without_slides_has_no_curve():
  p = paper_folders.part(0, 20, range(3), 1.0, 'x')
  p = Predictions(p.case, p.slide, np.minimum(p.label, 1), p.prob)
  assert np.isnan(figures.mean_roc(p)).all()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  """Folders of the five models and the three tasks, drawn as all figures."""
  folder = tmp_path_factory.mktemp('results')
  commands = paper_folders.Commands()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runs.subprocess, 'run', commands)
    for number in (3, 4):
      run(f'--figure={number}', K, f'--results_dir={folder}')
  assert len(commands.seen) == 8
  assert all('--external_phantom=True' in command for command in commands.seen)
  return folder


def read(results, names, folder='{}_origin_s2023'):
  return {
    name: comparison.read(results / folder.format(name), name) for name in names
  }


def test_pictures_lie_beside_their_numbers(results):
  for number in (3, 4):
    stem = results / 'paper_s2023' / f'figure_{number}'
    picture = np.asarray(Image.open(stem.with_suffix('.png')).convert('RGB'))
    assert min(picture.shape[:2]) > 1000 and picture.std() > 10
    text = stem.with_suffix('.md').read_text()
    assert 'external: 16 slides' in text and 'say nothing about' in text
    assert stem.with_suffix('.csv').exists()
  assert 'balanced accuracy' in text


def test_figure_2_draws_values_intervals_means_and_the_papers(results):
  found = read(results, MODELS)
  table = tables.of_runs('figure_2', found)
  by_class = tables.of_runs('table_1', {'kmil': found['kmil']})
  drawing = figures.of_models(table, by_class, 'drawn')
  ax, *others = drawing.axes
  held = [
    run.summary['metrics'][name] for run in found.values() for name in NAMES
  ]
  # Bars are drawn model by model, each in every group.
  assert [bar.get_height() for bar in ax.patches] == [m['pooled'] for m in held]
  shown = {'_': [], 'white': [], 'black': []}
  for line in ax.lines:
    kind = '_' if line.get_marker() == '_' else line.get_mfc()
    shown[kind] += np.ravel(line.get_ydata()).tolist()
  assert shown['_'] == [x for m in held for x in (m['ci_low'], m['ci_high'])]
  assert shown['black'] == [m['mean'] for m in held]
  # The paper prints the values of KMIL alone.
  assert shown['white'] == [0.9018, 0.9013, 0.9802]
  lefts = [bar.get_x() for bar in ax.patches]
  rights = [bar.get_x() + bar.get_width() for bar in ax.patches]
  order = np.argsort(lefts)
  assert (np.take(rights, order)[:-1] <= np.take(lefts, order)[1:]).all()
  per_class = found['kmil'].summary['per_class']
  for ax, kind in zip(others, ('recall', 'precision'), strict=True):
    heights = [bar.get_height() for bar in ax.patches]
    want = [100 * of_class[kind] for of_class in per_class.values()]
    assert heights == pytest.approx(want)
    known = papers.read('zheng')['table_1'].values['KMIL',]
    white = [x.get_ydata()[0] for x in ax.lines if x.get_mfc() == 'white']
    assert white == [known[f'{kind}: {name}'] for name in per_class]
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == list(per_class)


def test_both_cohorts_stand_side_by_side(results):
  found = read(results, MODELS)
  rows = {
    row.labels: row.lines for row in tables.of_runs('figure_3', found).rows
  }
  values = found['kmil'].summary['external']['metrics']
  here = rows['KMIL', 'external']['here, mean probability']
  assert here == [values[name]['ensemble'] for name in NAMES]
  assert len(rows) == 10
  found = read(results, 'abc', 'kmil_{}_s2023')
  rows = {
    row.labels: row.lines for row in tables.of_runs('figure_4', found).rows
  }
  values = found['b'].summary['metrics']
  here = rows['B', 'internal']['here, all folds pooled']
  assert here == [values[name]['pooled'] for name in NAMES]


def test_what_is_undefined_is_written_where_its_bar_would_stand():
  ax = figure.Figure().subplots()
  marks = [(None, (None, None), None, 0.3), (0.5, (0.4, 0.6), None, None)]
  figures._bars(ax, 'xy', {'KMIL': marks})
  assert [bar.get_height() for bar in ax.patches] == [0.5]
  (text,) = ax.texts
  assert text.get_text() == 'n/a' and 0 < text.get_position()[0] < 1
