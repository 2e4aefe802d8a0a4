"""Trained models on new slides: the run's own answers, recovery, refusals."""

import collections
import dataclasses
import html
import json
import re
import shutil
import signal
import sys

import feature_folder
from flax import traverse_util
import h5py
import huggingface_hub
import numpy as np
import pytest
from run_of_no_epoch import prob, rows, some_features
import safetensors.numpy
import small_slides

from data import features, packed, weights
from data.slides import SlideError
from experiments import export, predict as script
from experiments.bags import options
from experiments.bags.options import Model, Training
from experiments.encoding import encoder as encoders, extraction
from experiments.encoding.tiles import Scale
from experiments.maps import tile_scores
from experiments.prediction import (
  about,
  bags,
  encode,
  models as trained,
  outputs,
)
from experiments.prediction.models import Card, PredictionError
from experiments.run.options import parse, to_json
from experiments.run.results import Folder, ResultsError
from kmil_jax import calibration, checksums, export as archives, inference, port

NAMES = [f'slide_{i:03d}' for i in range(4)]
ENCODER = 'small_slides:colours'
MADE = {'encoder': ENCODER, 'mpp': '1.0', 'patch_size': '32', 'min_tissue': '0'}


def predict(source, models, folder):
  """Predicts a folder of features; returns the slides that failed."""
  card, function = models
  return outputs.predict(
    bags.find(source, card), card, function, Folder(folder)
  )


def at(models, *temperature):
  """The same models at other temperatures, None without a number."""
  card, function = models
  temperature = temperature or (None,) * len(card.folds)
  return dataclasses.replace(card, temperature=temperature), function


@pytest.fixture(scope='module')
def predicted(finished, models, tmp_path_factory):
  """All slides of the run, predicted anew."""
  folder = tmp_path_factory.mktemp('predicted')
  assert not predict(finished[1], models, folder)
  return folder


def test_the_runs_slides_get_the_runs_own_predictions(
  finished, models, predicted
):
  again = {row['slide_id']: row for row in rows(predicted / 'predictions.csv')}
  own = rows(finished[0] / 'predictions.csv')
  own += rows(finished[0] / 'validation_predictions.csv')
  assert len(again) == 24 and len(own) == 48
  for row in own:
    values = prob(again[row['slide_id']], f'fold_{row["fold"]}_')
    np.testing.assert_allclose(values, prob(row), atol=1e-6)
  paths = list(finished[0].glob('fold_*/attention/*.h5'))
  assert len(paths) == 24
  for path in paths:
    here = predicted / path.relative_to(finished[0])
    with h5py.File(path) as f, h5py.File(here) as g:
      assert set(f) == set(g) == {'coords', *models[1](np.ones((1, 16)))}
      assert f.attrs['encoder'] == g.attrs['encoder'] == 'planted'
      for name in f:
        np.testing.assert_allclose(g[name][()], f[name][()], atol=1e-6)


def test_models_of_the_phantom_are_called_so(finished, tmp_path, capsys):
  of_patients, of_phantom = finished[0], tmp_path / 'run'
  shutil.copytree(of_patients, of_phantom)
  config = Folder(of_phantom).read('config.json')
  config['options']['csv_path'] = None
  Folder(of_phantom).write('config.json', config)
  for run, is_phantom in (of_patients, False), (of_phantom, True):
    trained.Models(run=run).read()
    assert ('on the phantom cohort' in capsys.readouterr().out) == is_phantom


def test_folds_are_calibrated_each_and_averaged(
  finished, models, predicted, tmp_path
):
  """In the table and in maps."""
  other = at(models, 1.5, 0.7, 2.0)
  assert not predict(finished[1], other, tmp_path)
  paths = tile_scores.find(tmp_path)
  raw = rows(predicted / 'predictions.csv')
  for one, row in zip(raw, rows(tmp_path / 'predictions.csv'), strict=True):
    assert (one['calibrated'], row['calibrated']) == ('no', 'yes')
    folds = []
    for i, temperature in enumerate(other[0].temperature):
      before = np.array([prob(one, f'fold_{i}_')])
      folds.append(calibration.scale(before, temperature)[0])
      np.testing.assert_allclose(prob(row, f'fold_{i}_'), folds[-1])
    np.testing.assert_allclose(prob(row), np.mean(folds, 0))
    spread = [float(row[f'std_{c}']) for c in range(3)]
    np.testing.assert_allclose(spread, np.std(folds, 0, ddof=1), atol=1e-12)
    assert row['pred'] == str(np.mean(folds, 0).argmax())
    shown = tile_scores.read(paths[row['slide_id']])
    np.testing.assert_allclose(shown.prob.mean(0), prob(row), atol=1e-9)
    np.testing.assert_allclose(shown.spread, spread, atol=1e-9)
  predict(finished[1], at(models, 1.5, None, 1.0), tmp_path)
  found = rows(tmp_path / 'predictions.csv')
  assert {row['calibrated'] for row in found} == {'partly'}


def test_patients_are_predicted_beside_their_slides(
  finished, tmp_path, monkeypatch, capsys
):
  source = some_features(finished, tmp_path / 'features', NAMES)
  table = tmp_path / 'cases.csv'
  table.write_text(
    'case_id,slide_id\nb,slide_000\na,slide_002\nb,slide_001\na,slide_003\n'
  )

  def run(*flags):
    arguments = [f'--run={finished[0]}', f'--features_dir={source}', *flags]
    script.main(['predict', *arguments, f'--results_dir={tmp_path / "out"}'])
    return capsys.readouterr().out

  printed = run(f'--csv_path={table}')
  (folder,) = (tmp_path / 'out').iterdir()
  path = folder / 'predictions_cases.csv'
  slides = rows(folder / 'predictions.csv')
  assert [row['case_id'] for row in slides] == ['b', 'b', 'a', 'a']
  of_slide = {row['slide_id']: prob(row) for row in slides}
  found = rows(path)
  # As the table of a training has them.
  assert list(found[0]) == list(rows(finished[0] / 'predictions_cases.csv')[0])
  assert [row['case_id'] for row in found] == ['a', 'b']
  for row, slides in zip(found, (NAMES[2:], NAMES[:2]), strict=True):
    probs = np.array([of_slide[slide] for slide in slides])
    highest = probs.max(0) / probs.max(0).sum()
    for how, expected in ('mean', probs.mean(0)), ('max', highest):
      values = [float(row[f'prob_{how}_{c}']) for c in range(3)]
      np.testing.assert_allclose(values, expected)
    assert (row['fold'], row['slides'], row['label']) == ('mean', '2', '')
    surest = probs[:, int(row['pred_mean'])].argmax()
    assert row['top_slide'] == slides[surest]
  lines = re.findall(
    'patients, by the (mean|max) of their slides: (.*)', printed
  )
  for how, text in lines:
    counts = collections.Counter(row[f'pred_{how}'] for row in found)
    assert text == ', '.join(f'{c} {counts[c]}' for c in '012')
  assert [how for how, _ in lines] == ['mean', 'max']
  run()  # Without patients none are left that may be of other slides.
  assert not path.exists()
  # A packed cohort knows them itself.
  opened = bags.find(source, trained.read(Folder(finished[0]), None)[0])
  opened.source.cases = dict(zip(NAMES, 'bbaa', strict=True))
  with monkeypatch.context() as patched:
    patched.setattr(bags, 'find', lambda *_, **__: opened)
    run()
  assert rows(path) == found
  path.unlink()
  path.touch()  # Nor while a run is unfinished.
  with pytest.raises(SystemExit), monkeypatch.context() as patched:
    patched.setattr(outputs, 'predict', lambda *_: sys.exit('stopped'))
    run(f'--csv_path={table}')
  assert not path.exists()
  table.write_text('case_id,slide_id\nb,slide_000\na,SLIDE_1\n,slide_002\n')
  message = (
    'no row of 3 of 4 slides: slide_001, slide_002, slide_003. Add them, or'
    ' leave --csv_path out. Some ids differ only in leading zeros'
  )
  with pytest.raises(SystemExit, match='row 4: empty case_id') as error:
    run(f'--csv_path={table}')
  assert message in str(error.value)
  with pytest.raises(SystemExit):
    run(f'--csv_path={table}', '--check')
  assert f'problem: {table}: {message}' in capsys.readouterr().out
  # What is wrong with the rows of other slides only warns.
  table.write_text('case_id,slide_id\na,x\nb,y\nb,y\n,z\n')
  assert bags.cases(table, ['x']) == ({'x': 'a'}, [])
  printed = capsys.readouterr().out
  for fault in 'row 5: empty case_id', 'slide y: 2 rows':
    assert f'warning: {table}: {fault}\n' in printed
  assert bags.cases(table, ['x', 'y'])[1] == [f'{table}: slide y: 2 rows']
  # A case that lacks one of its slides is not the whole of it.
  assert 'not there' not in printed
  table.write_text('case_id,slide_id\na,x\na,w\nb,y\n')
  assert bags.cases(table, ['x']) == ({'x': 'a'}, [])
  assert 'other slides of these cases are not there: w. T' in (
    capsys.readouterr().out
  )


def test_slides_and_patients_of_the_training_are_named(
  finished, tmp_path, capsys
):
  cohort = rows(finished[0] / 'cohort.csv')
  case = cohort[0]['case_id']
  given = NAMES[0], 'other', 'new'
  case_of = {NAMES[0]: case, 'other': f' {case.upper()}', 'new': 'p'}
  known = trained.Models(run=finished[0]).known(given, case_of)
  assert known == dict(zip(given, ('slide', 'patient', 'no'), strict=True))
  printed = capsys.readouterr().out
  assert 'slides with ids of the training: slide_0' in printed
  assert 'slides of patients of the training: other. Their' in printed
  # What a fold tests, its model alone has not seen.
  tested = {
    fold: [r['test'] for r in rows(finished[0] / f'splits/splits_{fold}.csv')]
    for fold in (0, 1)
  }
  for fold, names in tested.items():
    names = list(filter(None, names))
    one = trained.Models(run=finished[0], fold=fold)
    other = trained.Models(run=finished[0], fold=1 - fold)
    of = {row['slide_id']: row['case_id'] for row in cohort}
    assert names and set(one.known(names, of).values()) == {'no'}
    assert set(other.known(names, of).values()) == {'slide'}
  capsys.readouterr()
  assert trained.Models(model=tmp_path).known(given, case_of) == {}
  assert 'does not name the slides of its training' in capsys.readouterr().out


def test_patients_without_any_prediction_are_named_apart(
  finished, models, tmp_path, capsys
):
  source = some_features(finished, tmp_path / 'features', NAMES[:1])
  outputs.predict(
    bags.find(source, models[0]),
    *models,
    Folder(tmp_path),
    {'x': 'broken', 'y': 'broken'},
    {NAMES[0]: 'a', 'x': 'a', 'y': 'b'},
    {NAMES[0]: 'patient'},
  )
  printed = capsys.readouterr().out
  assert 'patients with slides without a prediction: a. Their' in printed
  assert 'patients with no prediction: b. None' in printed
  (row,) = rows(tmp_path / 'predictions.csv')
  assert row['trained_on'] == 'patient'


def test_one_fold_is_one_of_all(finished, predicted, tmp_path, capsys):
  folder = shutil.copytree(predicted, tmp_path / 'copy')
  card, one = trained.read(Folder(finished[0]), 1)
  assert card.folds == (1,)
  found = one.predictor(features.read(finished[1] / 'slide_000.h5').features)
  path = folder / 'fold_1' / 'attention' / 'slide_000.h5'
  with h5py.File(path) as f:
    np.testing.assert_allclose(found['prob'][0], f['prob'][()], atol=1e-6)
  # Files of this fold that all folds' models left count as its own.
  predict(finished[1], (card, None), folder)
  assert 'slides done before: 24 of 24' in capsys.readouterr().out
  row, *_ = rows(folder / 'predictions.csv')
  assert row['std_0'] == '' and 'fold_0_prob_0' not in row


def test_changed_slides_are_predicted_anew_and_unreadable_ones_leave_no_maps(
  finished, models, tmp_path
):
  source = some_features(finished, tmp_path / 'features', NAMES)
  there = lambda: {path.stem for path in tmp_path.glob('fold_*/*/*.h5')}
  card, function = models
  calls = []

  def counted(x):
    calls.append(len(x))
    return function(x)

  counted.peak_bytes = function.peak_bytes
  assert not predict(source, models, tmp_path) and there() == set(NAMES)
  # Other features of a slide, and a file that is not what it was.
  shutil.copy(source / 'slide_003.h5', source / 'slide_001.h5')
  path = tmp_path / 'fold_2' / 'attention' / 'slide_002.h5'
  path.write_bytes(b'of another')
  assert not predict(source, (card, counted), tmp_path) and len(calls) == 2
  content = (source / 'slide_000.h5').read_bytes()
  (source / 'slide_000.h5').write_bytes(content[: len(content) // 2])
  (source / 'slide_001.h5').unlink()
  with h5py.File(source / 'slide_002.h5', 'a') as f:
    f['features'][0, 0] = np.nan
  failures = predict(source, models, tmp_path)
  assert there() == {'slide_003'}
  (row,) = rows(tmp_path / 'predictions.csv')
  assert row['slide_id'] == 'slide_003'
  assert list(failures) == ['slide_000', 'slide_002']
  assert 'HDF5' in failures['slide_000'] and 'NaN' in failures['slide_002']
  written = rows(tmp_path / 'failures.csv')
  assert {row['slide_id']: row['reason'] for row in written} == failures


def test_a_bag_that_does_not_fit_in_memory_is_refused_unread(
  finished, models, tmp_path, monkeypatch
):
  found = bags.find(finished[1], models[0])
  lengths = {slide: found.source.header(slide).length for slide in found.ids}
  longest = max(lengths, key=lengths.get)
  assert not found.too_large(models[1])
  needed = models[1].peak_bytes(lengths[longest], 16)
  # The weights and the bag are in memory, however little else is.
  assert needed > sum(x.nbytes for x in models[1]._weights.values())
  assert models[1].peak_bytes(10**6, 16) > 2 * 4 * 16 * 10**6
  monkeypatch.setattr(bags.files, 'memory', lambda: needed - 1)
  monkeypatch.setattr(found.source, 'read', None)
  failures = outputs.predict(found, *models, Folder(tmp_path))
  reason = failures[longest]
  assert f'{longest}: ' in reason and f'{lengths[longest]} instances' in reason
  assert 'GiB of memory' in reason and '--fold' in reason
  assert any(longest in fault for fault in found.too_large(models[1]))


def test_features_made_otherwise_are_refused(
  finished, models, model_file, tmp_path, monkeypatch, capsys
):
  of_file, _ = trained.Models(model=model_file).read()
  source = some_features(finished, tmp_path / 'same', NAMES[:1], mpp=1.0005)
  assert bags.find(source, of_file).differences == []
  for name, value, usual in (
    ('encoder', 'other', 'planted'),
    ('mpp', 0.5, '1.0'),
    ('patch_size', 256, '128'),
    ('precision', 'bfloat16', 'float32'),
    ('normalisation', 'pixels / 255', 'pixels'),
  ):
    source = some_features(
      finished, tmp_path / name, NAMES[:1], **{name: value}
    )
    for card in (models[0], of_file):
      made = {**card.features, name: usual}
      card = dataclasses.replace(card, features=made)
      (message,) = bags.find(source, card).differences
      assert f'differ: {name} {value} here, {usual} there' in message
  capsys.readouterr()
  source = some_features(finished, tmp_path / 'near', NAMES[:1], overlap=64)
  assert bags.find(source, of_file).differences == []
  assert (
    'than those of the models: overlap 64 here, 0' in capsys.readouterr().out
  )
  feature_folder.write(tmp_path / 'wide', [np.ones((3, 17))], [0])
  (message,) = bags.find(tmp_path / 'wide' / 'features', models[0]).differences
  assert 'dimensions 17 here, 16 there' in message
  bags.find(finished[1], dataclasses.replace(models[0], features={}))
  assert 'warning: encoder, mpp, patch_size of these' in capsys.readouterr().out
  silent = some_features(finished, tmp_path / 'silent', NAMES[:1])
  with h5py.File(silent / 'slide_000.h5', 'a') as f:
    for attributes in (f.attrs, f['coords'].attrs):
      attributes.pop('mpp', None)
  assert bags.find(silent, of_file).differences == []
  assert capsys.readouterr().out == (
    'warning: mpp of these features, or of those of the models, is not stated.'
    ' Make sure that they are alike.\n'
  )
  ids = ['../slide', 'a\\b', '..', 'slide_001']
  monkeypatch.setattr(packed.Folder, 'ids', lambda self: ids)
  failures = predict(finished[1], models, tmp_path / 'out')
  assert list(failures) == sorted(ids[:3])
  assert len(list(tmp_path.glob('**/slide_001.h5'))) == 3


@pytest.mark.parametrize(
  'changed,message',
  [
    ({'format': 2}, 'm.kmil: a card of format 2, in which nothing is wrong'),
    ({'folds': 3}, 'in which folds is wrong'),
    ({'temperature': [1.0]}, 'in which temperature is wrong'),
  ],
)
def test_cards_of_another_kind_are_refused(models, changed, message):
  card = at(models, None, 10.0, 2.0)[0]
  whole = json.loads(json.dumps(card.to_json()))
  # An older version fitted temperatures that end at a bound.
  assert Card.from_json('m.kmil', whole) == at(models, None, None, 2.0)[0]
  with pytest.raises(PredictionError, match=message):
    Card.from_json('m.kmil', whole | changed)


def change(folder, name, **values):
  content = json.loads((folder / name).read_text()) | values
  (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
  'spoil,message',
  [
    (lambda f: change(f, 'summary.json', folds=[0, 1]), r'\[2\] have no model'),
    (lambda f: shutil.rmtree(f / 'fold_2/checkpoints'), 'no model was kept'),
    (lambda f: change(f, 'config.json', options={'seed': 1}), 'no models of'),
    (
      lambda f: change(
        f, 'config.json', cohort={'classes': ['0', '1', '2'], 'width': 17}
      ),
      'no parameters of kmil with 3 classes and 17 features',
    ),
  ],
)
def test_folders_that_do_not_fit_are_refused(
  finished, tmp_path, spoil, message
):
  folder = shutil.copytree(finished[0], tmp_path / 'run [1]')
  assert trained.read(Folder(folder), 2)[0].folds == (2,)
  spoil(folder)
  with pytest.raises((ResultsError, OSError), match=message):
    trained.read(Folder(folder), None)


@pytest.mark.parametrize(
  'flags',
  [
    '--drop_fraction=0.25 --drop=highest --score=one_minus_var',
    '--model=dsmil --combine --precision=bfloat16',
    '--model=dtfd_gated --distill=maxs --pseudo_bags=2 --total_instances=6'
    ' --instance_score=predicted',
  ],
)
def test_the_flags_of_a_training_give_its_design(flags):
  model, training = parse(['kmil', *flags.split()], (Model, Training))
  settings = options.settings(model, training, seed=1)
  values = to_json([model, training.resolved(model.model)])
  design = inference.Design.of_options(values, num_classes=3, width=16)
  assert design == settings.design(3, 16)


def test_the_commands(finished, model_file, tmp_path, capsys):
  source = some_features(finished, tmp_path / 'new', NAMES[:2])
  (source / 'broken.h5').write_bytes(b'no features')
  mixed = some_features(finished, tmp_path / 'mixed/new', NAMES[:2])
  some_features(finished, mixed, ['slide_002'], mpp=0.5)
  some_features(finished, mixed, ['slide_003'], encoder='other')
  other = some_features(finished, tmp_path / 'other/new', NAMES[:2])
  (tmp_path / 'empty').mkdir()
  mine = tmp_path / 'mine.kmil'
  export.main(['export', f'--run={finished[0]}', f'--out={mine}'])
  # The same run gives the same file, wherever it is made.
  assert mine.read_bytes() == model_file.read_bytes()

  def end(features_dir, *flags):
    """Returns how the script ends, and what it prints."""
    with pytest.raises(SystemExit) as error:
      script.main([
        'predict', f'--run={finished[0]}', f'--features_dir={features_dir}',
        f'--results_dir={tmp_path}', '--fold=2', *flags,
      ])  # fmt: skip
    return f'{capsys.readouterr().out}{error.value.code}'

  printed = end(source)
  for words in (
    'error: 1 slide without a prediction:\n  broken',
    'warning: models not calibrated: 1 of 1, for',
    'with ids of the training: sl',
  ):
    assert words in printed
  folder = tmp_path / f'predict_{finished[0].name}_fold_2_new'
  assert len(rows(folder / 'predictions.csv')) == 2
  printed = end(mixed, '--check')  # All that is wrong at once.
  for words in (
    f'problem: {mixed}: features of different encoder are mixed',
    f'problem: {mixed}: features of different mpp are mixed: 0.5, 1.0. Other'
    ' than the rest are slide_002',
    'check: 2 problems',
  ):
    assert words in printed
  assert '/broken.h5: ' in end(source, '--check')
  for features_dir, flags, message in (
    (tmp_path / 'empty', [], 'no feature files'),
    # A folder of the same name is not the same slides.
    (other, [], f'features_dir: {source} before, {other} now'),
  ):
    assert message in end(features_dir, *flags)


def test_a_model_file_says_what_it_is(finished, models, model_file):
  archive = archives.read(model_file)
  card, summary = archive.card, Folder(finished[0]).read('summary.json')
  assert Card.from_json('m.kmil', card) == models[0]
  assert (card['slides'], card['patients']) == (24, 24)
  assert card['metrics'] == summary['metrics']
  of = summary['metrics']['auroc']
  page = html.unescape((finished[0] / 'report.html').read_text('utf-8'))
  assert 'Few patients' in ' '.join(card['cautions'])
  for caution in card['cautions']:
    assert caution.partition('. ')[0] in page
  text = archive.others['README.md'].decode()
  head = huggingface_hub.ModelCard(text).data
  assert head.license == card['license'] == 'unknown'
  measured = {one.metric_type: one.metric_value for one in head.eval_results}
  assert measured['auroc'] == of['pooled']
  for words in (
    *card['cautions'],
    'Research',
    'encoder: planted',
    '24 patients',
  ):
    assert words in text
  # A command that was given again, on features that say nothing.
  again = {'made_by': 2 * card['made_by'], 'features': {}}
  text = about.readme(card | again)
  assert text.count('Trained with') == 1 and 'did not say' in text


def test_torch_weights_are_those_of_the_models(finished, models, tmp_path):
  out = [f'--out={tmp_path / "m.kmil"}', f'--torch_dir={tmp_path / "torch"}']
  export.main(['export', f'--run={finished[0]}', '--fold=2', *out])
  weights = archives.read(tmp_path / 'm.kmil').weights
  for network, name in ('model', 'kmil'), ('chooser', 'abmil'):
    path = tmp_path / f'torch/fold_2_{network}.safetensors'
    state = safetensors.numpy.load_file(path)
    read = port.from_torch(name, state)['params']
    for key, value in traverse_util.flatten_dict(read, sep='/').items():
      np.testing.assert_array_equal(value, weights[f'{network}/{key}'][0])


# Without models; and dead once half of the fifth file is written.
_ALONE = """
import sys
for name in ('kmil_jax.models', 'kmil_jax.train', 'experiments.bags.crossval'):
  sys.modules[name] = None
"""
_KILLED = """
import os, signal
from experiments.maps import tile_scores
write, written = tile_scores.write, []
def killed(path, arrays, attributes):
  if len(written) == 4:
    path.with_name('.' + path.name + '.part').write_bytes(b'half of it')
    os.kill(os.getpid(), signal.SIGKILL)
  written.append(path)
  write(path, arrays, attributes)
tile_scores.write = killed
"""


def test_a_killed_prediction_by_file_goes_on_without_the_models_code(
  finished, model_file, predicted, tmp_path
):
  source = some_features(finished, tmp_path / 'new', NAMES[:3])
  arguments = [
    f'--model={model_file}',
    f'--features_dir={source}',
    f'--results_dir={tmp_path}',
    '--exp_code=out',
    '--nocalibrate',
  ]
  process = feature_folder.script(
    *arguments, module='predict', before=_ALONE + _KILLED
  )
  printed, _ = process.communicate(timeout=120)
  assert process.returncode == -signal.SIGKILL, printed
  assert not (tmp_path / 'out' / 'predictions.csv').exists()
  printed = feature_folder.run(*arguments, module='predict', before=_ALONE)
  assert 'slides done before: 1 of 3' in printed
  want = rows(predicted / 'predictions.csv')[:3]
  got = rows(tmp_path / 'out' / 'predictions.csv')
  for one, other in zip(want, got, strict=True):
    assert one['slide_id'] == other['slide_id']
    np.testing.assert_allclose(prob(other), prob(one), atol=1e-6)


@pytest.fixture
def plan(models, tmp_path):
  """Slides of 0.5 um per pixel, and how they become features of an encoder."""
  folder = tmp_path / 'slides'
  small_slides.write(folder, {'a': (64, 192), 'b.1': (128, 320)})
  (tmp_path / 'mpp.csv').write_text('slide_id,mpp\na,0.5\n')

  def plan(weights=ENCODER, slides_dir=folder, **made):
    stated = {k: v for k, v in (MADE | made).items() if v is not None}
    card = dataclasses.replace(models[0], width=6, features=stated)
    scale = Scale(slide_mpp_csv=tmp_path / 'mpp.csv')
    return card, encode.plan(slides_dir, card, weights, tmp_path, scale)

  return plan


def test_features_are_made_as_those_of_the_training(plan, tmp_path):
  card, (cohort, encoder) = plan()
  assert not extraction.extract(cohort, tmp_path / 'features', encoder)
  found = bags.find(tmp_path / 'features', card)
  assert found.ids == ['a', 'b.1'] and found.differences == []
  # 64 level-0 pixels to a tile.
  counts = [len(found.source.read(slide).features) for slide in found.ids]
  assert counts == [3, 10]
  attributes = features.header(tmp_path / 'features' / 'a.h5').attributes
  assert attributes['level0_mpp_source'] == 'mpp_csv'
  assert attributes['encoder'] == ENCODER


def test_tiles_are_placed_as_those_of_the_training(plan):
  made = {'overlap': '16', 'min_focus': '0.5', 'min_tissue': '0.25'}
  made |= {'saturation': '0.03', 'max_hole_mm2': '0.2'}
  _, (cohort, _) = plan(**made)
  stated = cohort.attributes('a')
  assert {name: str(stated[name]) for name in made} == made
  assert stated['min_piece_mm2'] is None  # As by default.
  _, (cohort, _) = plan()
  assert cohort.attributes('a')['overlap'] == 0


@pytest.mark.parametrize(
  'made,weights,message',
  [
    ({'encoder': 'uni_v1'}, ENCODER, 'take features of encoder uni_v1,'),
    ({'encoder': None}, ENCODER, 'encoder unknown'),
    ({'mpp': None}, ENCODER, 'tiles of 32 px at unknown um/px'),
    ({'encoder': 'resnet50-conv4-1'}, None, 'Give its weights by --weights'),
    ({'encoder': 'resnet50-conv4-1'}, 'no.pth', 'no such weights file'),
    ({'encoder': 'resnet50-conv4-1'}, ENCODER, f'{ENCODER} is {ENCODER}'),
  ],
)
def test_features_that_cannot_be_made_alike_are_refused(
  plan, made, weights, message
):
  with pytest.raises((PredictionError, encoders.EncoderError), match=message):
    plan(weights, **made)


def test_an_encoder_travels_in_the_file(plan, finished, tmp_path):
  run = shutil.copytree(finished[0], tmp_path / 'run')
  path = encoders.file_of_weights('efficientnet_lite0', None, tmp_path)
  network = weights.read(path)
  network['_bn0.bias'] += 1
  path = tmp_path / 'mine.safetensors'
  path.write_bytes(safetensors.numpy.save(network))
  digest = checksums.of_file(path)
  config = json.loads((run / 'config.json').read_text())
  name = f'efficientnet_lite0-{digest[:8]}'
  config['cohort']['features'] |= MADE | {'encoder': name}
  (run / 'config.json').write_text(json.dumps(config))
  command = [
    *('export', f'--run={run}', f'--out={tmp_path / "m.kmil"}'),
    *('--with_encoder', f'--cache_dir={tmp_path}'),
  ]
  with pytest.raises(SystemExit, match='has other weights'):
    export.main(command)
  export.main([*command, f'--weights={path}'])
  path.unlink()
  card = archives.read(tmp_path / 'm.kmil').card
  assert card['encoder_weights'] == {'file': path.name, 'sha256': digest}
  models = trained.Models(model=tmp_path / 'm.kmil')
  file = encode.at_hand(models, tmp_path)
  _, (_, encoder) = plan(file, encoder=name)
  assert encoder.name == name


def test_a_random_encoder_is_found_beside_the_features_of_the_training(
  plan, tmp_path
):
  (tmp_path / 'config.json').write_text(
    f'{{"cohort": {{"features_dir": "{tmp_path}"}}, "version": 2,'
    ' "options": {}, "inputs": {}, "made_by": []}'
  )
  (tmp_path / 'encoder.safetensors').write_bytes(b'half a file')
  at_hand = encode.at_hand(trained.Models(run=tmp_path), tmp_path)
  with pytest.raises(
    weights.WeightsError, match=r'/encoder\.safetensors: .*not'
  ):
    plan(at_hand, encoder='resnet50-conv4-random-seed0-1')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(SlideError, match='holds no slides'):
    plan(slides_dir=tmp_path / 'empty')
