"""The library on arrays: what the page shows, and what it refuses."""

import contextlib
import dataclasses
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from sklearn import base, exceptions
import torch

import data
from data import features, tiff
import kmil_jax
from kmil_jax.models import SPECS, kmil
from kmil_jax.tasks import bags

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'library.md'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where the page runs: labels.csv, features of 12 slides, 2 slides."""
  folder = tmp_path_factory.mktemp('page')
  rng = np.random.default_rng(0)
  rows = ['case_id,slide_id,label']
  (folder / 'features').mkdir()
  for i in range(12):
    rows.append(f'case {i},s{i:02},{"benign" if i % 2 else "tumour"}')
    with h5py.File(folder / f'features/s{i:02}.h5', 'w') as file:
      file['features'] = rng.normal(size=(9, 5)).astype(np.float32)
  (folder / 'labels.csv').write_text('\n'.join(rows))
  (folder / 'slides').mkdir()
  for name, colour in {'a': (180, 90, 160), 'b': (90, 60, 140)}.items():
    image = np.full((512, 512, 3), colour, np.uint8)
    tiff.write(folder / f'slides/{name}.tiff', image, mpp=0.5, levels=1)
  return folder


@pytest.fixture(scope='module')
def shown(folder):
  """What is defined once the page has run."""
  text = PAGE.read_text(encoding='utf-8')
  names = {'__name__': 'library_page'}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(bags, 'MAX_BUCKETS', 1)  # Each is compiled.
    with contextlib.chdir(folder):
      for block in re.findall(r'```python\n(.*?)```', text, re.S):
        exec(compile(block, str(PAGE), 'exec'), names)
    yield names
  del SPECS['mean']


def test_the_page_runs_and_names_every_public_function(shown):
  text = PAGE.read_text(encoding='utf-8')
  assert {'fit', 'load', 'register'} <= set(kmil_jax.__all__)
  for name in (*kmil_jax.__all__, *data.__all__):
    assert re.search(rf'\b{name}\b', text), name
  assert kmil_jax.__version__


def test_planted_bags_are_learnt_out_of_fold(shown):
  model = shown['model']
  p = model.predictions
  assert model.classes == ('benign', 'tumour')
  np.testing.assert_allclose(p.prob.sum(1), 1, rtol=1e-5)
  for name, (value, low, high) in model.metrics(resamples=200).items():
    assert value > 0.8, name
    assert not low > value and not high < value
  # Patients never straddle folds.
  for patient in set(p.patient):
    assert len(set(p.fold[p.patient == patient])) == 1
  prob = model.predict(shown['bags'])
  truth = np.array([label == 'tumour' for label in shown['labels']])
  assert ((prob[:, 1] > 0.5) == truth).mean() > 0.9
  attention, kept = model.attention(shown['bags'][2])
  assert attention.shape == kept.shape == (len(shown['bags'][2]),)
  np.testing.assert_allclose(attention.sum(), 1, rtol=1e-5)
  assert kept.min() < 1  # KMIL drops a tenth.


def test_a_model_and_a_loss_of_ones_own_train(shown):
  assert shown['mean'].metrics(resamples=200)['auroc'][0] > 0.7


def test_a_cohort_of_ones_own_is_read(shown):
  assert shown['own'].predictions.prob.shape == (12, 2)
  assert shown['own'].predictions.patient.tolist() == [
    f'case {i}' for i in range(12)
  ]


def test_an_encoder_of_ones_own_makes_features(shown, folder):
  assert shown['failures'] == {}
  for name in 'ab':
    file = features.read(folder / f'colours/{name}.h5')
    assert file.features.shape == (4, 6) and file.coords.shape == (4, 2)
    assert file.attributes['encoder'] == 'colours'


def test_a_results_folder_is_loaded(tmp_path):
  folder = tmp_path / 'kept'
  shutil.copytree(ROOT / 'tests' / 'golden' / 'stored' / 'kept_s2023', folder)
  model = kmil_jax.load(folder)
  bag = np.random.default_rng(0).normal(size=(7, model.design.width))
  prob = model.predict([bag, bag[::-1]])
  np.testing.assert_allclose(prob.sum(1), 1, rtol=1e-5)
  np.testing.assert_allclose(prob[0], prob[1], rtol=1e-4)
  attention, kept = model.attention(bag)
  assert len(attention) == len(kept) == 7
  with pytest.raises(ValueError, match='were loaded'):
    model.metrics()
  with pytest.raises(FileNotFoundError):
    kmil_jax.load(tmp_path)
  assert repr(model).startswith('Trained(model=')
  assert len(repr(model)) < 200
  with pytest.raises(FileNotFoundError, match='no model was kept'):
    kmil_jax.load(folder, [99])
  assert not (folder / 'fold_99').exists()
  (folder / 'seed_2023').mkdir()
  with pytest.raises(ValueError, match='of one of them: seed_2023'):
    kmil_jax.load(folder)


def test_one_fold_predicts_what_validates_it():
  rng = np.random.default_rng(0)
  label = np.arange(20) % 2
  bags = [rng.normal(y, 1, (4, 3)).astype(np.float32) for y in label]
  recipe = kmil_jax.Recipe(epochs=1)
  with pytest.warns(UserWarning, match='tests nothing'):
    # A seed as of `secrets.randbits(128)`.
    few = dict(model='abmil', folds=1, recipe=recipe, seed=2**127 + 3)
    trained = kmil_jax.fit(bags, torch.tensor(label), **few)
  known = np.isfinite(trained.predictions.prob).all(1)
  assert known.sum() == 4
  assert label[known].sum() == 2
  validated = [bags[i] for i in np.flatnonzero(known)]
  want = trained.predict(validated)
  np.testing.assert_allclose(trained.predictions.prob[known], want, atol=1e-6)
  again = pickle.loads(pickle.dumps(trained))
  np.testing.assert_array_equal(again.predict(validated), want)


def test_in_bfloat16_folds_predict_what_they_were_tested_by():
  rng = np.random.default_rng(0)
  bags = [rng.normal(size=(9, 8)).astype(np.float32) for _ in range(9)]
  recipe = kmil_jax.Recipe(epochs=3, learning_rate=1e-2)
  few = dict(model='abmil', folds=3, recipe=recipe, precision='bfloat16')
  trained = kmil_jax.fit(bags, [0, 1, 2] * 3, **few)
  p = trained.predictions
  prob = np.stack([trained.predictor(bag)['prob'] for bag in bags])
  # Features that were not rounded in training differ by 2e-4.
  np.testing.assert_allclose(prob[np.arange(9), p.fold], p.prob, atol=1e-6)


def test_folds_that_diverge_have_no_predictions(shown, monkeypatch):
  from kmil_jax import loop

  fit = loop.fit

  def lost(*args, **options):
    result = fit(*args, **options)
    failed = np.where(np.arange(len(result.epoch)) == 1, 0, -1)
    epoch = np.where(failed == 0, -1, result.epoch)
    return dataclasses.replace(result, failed=failed, epoch=epoch)

  monkeypatch.setattr(loop, 'fit', lost)
  few = dict(folds=3, model='abmil', recipe=kmil_jax.Recipe(epochs=1))
  model = kmil_jax.fit(shown['bags'], shown['labels'], **few)
  p = model.predictions
  np.testing.assert_array_equal(np.isnan(p.prob).all(1), p.fold == 1)
  assert model.diverged[1] == {'model': (0, -1)} and not model.diverged[0]
  assert np.isfinite(model.metrics(resamples=100)['accuracy'][0])
  assert np.isfinite(model.predict(shown['bags'][:2])).all()
  assert len(next(iter(model.weights.values()))) == 2
  monkeypatch.undo()
  diverging = kmil_jax.Recipe(epochs=2, learning_rate=1e38)
  with pytest.raises(FloatingPointError, match='every fold'):
    kmil_jax.fit(
      [bag * 1e30 for bag in shown['bags']],
      shown['labels'],
      **few | {'recipe': diverging},
    )


class Unknown:
  """As `pandas.NA`, which is neither equal to itself nor not."""

  def __eq__(self, other):
    return self

  __ne__, __hash__ = __eq__, object.__hash__

  def __bool__(self):
    raise TypeError


BAGS = [np.zeros((3, 4))] * 6
BY_AUROC = kmil_jax.Recipe(epochs=1, select='auroc')
ALONE = {'labels': 'aaaaab', 'folds': 1, 'recipe': BY_AUROC}


@pytest.mark.parametrize(
  'change,message',
  [
    ({'model': 'none'}, "model 'none' is unknown.* abmil"),
    ({'labels': 'ab'}, '2 labels were given for 6 bags'),
    ({'patients': ['a', 'b']}, '2 patients were given for 6 bags'),
    ({'bags': [np.zeros(3)] * 6}, r'Bag 0 has the shape \(3,\)'),
    ({'bags': [np.zeros((3, 0))] * 6}, r'Bag 0 has the shape \(3, 0\)'),
    ({'precision': 'float16', 'folds': 3}, "'float16' is unknown.* tf32"),
    ({'choice': kmil.Choice(drop='top')}, "drop 'top' is unknown.* lowest"),
    ({'model': 'dsmil', 'choice': kmil.Choice()}, 'dsmil sees all instances'),
    ({'model': 'transmil', 'combine': True}, 'transmil learns from bags alone'),
    ({'labels': ['a', 'b', 'a', Unknown(), 'a', 'b']}, 'Bag 3 has <'),
    ({'bags': [*BAGS[:5], np.zeros((3, 5))]}, 'Bag 5 has 5 features, not 4'),
    ({'bags': [*BAGS[:5], np.full((3, 4), np.nan)]}, 'Bag 5 has features that'),
    ({'bags': []}, 'No bags'),
    ({'labels': 'aaaaaa'}, 'All labels are a'),
    ({'labels': ['a', 'b', None, 'a', 'b', 'a']}, 'Bag 2 has None among the'),
    (
      {'patients': [0, 1, 2, float('nan'), 4, 5]},
      'Bag 3 has nan among',
    ),
    ({'patients': ['a', 'b', '', 'd', 'e', 'f']}, "Bag 2 has '' among the pat"),
    (
      {'recipe': kmil_jax.Recipe(epochs=0)},
      'epochs and batch must be at least',
    ),
    ({'recipe': kmil_jax.Recipe(batch=0)}, 'epochs and batch must be at least'),
    (ALONE, r'validation parts of folds \[0\] hold one class'),
  ],
)
def test_what_cannot_be_trained_is_named(change, message):
  arguments = {'bags': BAGS, 'labels': 'ababab'} | change
  labels = list(arguments.pop('labels'))
  with pytest.raises(ValueError, match=message):
    kmil_jax.fit(arguments.pop('bags'), labels, **arguments)


def test_an_estimator_is_one_to_scikit_learn(shown):
  assert shown['scores'].shape == (2,) and shown['scores'].min() > 0.8
  made = kmil_jax.BagClassifier('abmil', folds=4, recipe=shown['recipe'])
  copy = base.clone(made).set_params(folds=3)
  wanted = {'model': 'abmil', 'seed': 2023, 'recipe': shown['recipe']}
  assert copy.get_params() == wanted | {'folds': 3}
  assert made.get_params()['folds'] == 4 and base.is_classifier(copy)
  bags, labels = shown['bags'], shown['labels']
  with pytest.raises(exceptions.NotFittedError):
    copy.predict_proba(bags)
  fitted = copy.fit(bags, labels, groups=shown['patients'])
  assert fitted is copy and copy.classes_.tolist() == ['benign', 'tumour']
  p = copy.trained_.predictions
  assert p.patient.tolist() == shown['patients'] and set(p.fold) == {0, 1, 2}
  prob = copy.predict_proba(bags)
  np.testing.assert_array_equal(
    copy.predict(bags) == 'tumour', prob[:, 1] > prob[:, 0]
  )
  assert copy.score(bags, labels) > 0.9


def test_a_name_of_the_library_is_not_registered_again():
  with pytest.raises(ValueError, match="a model 'kmil' already"):
    kmil_jax.register('kmil', None)


def test_a_cell_that_registers_may_be_run_again():
  spec = SPECS['abmil']
  try:
    kmil_jax.register('again', spec)
    kmil_jax.register('again', dataclasses.replace(spec, paper='new'))
    assert SPECS['again'].paper == 'new'
  finally:
    del SPECS['again']


def test_importing_takes_neither_jax_nor_tensorflow():
  program = (
    'import sys, kmil_jax\n'
    "assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
    'kmil_jax.fit\n'
    "banned = {'tensorflow', 'openslide', 'data', 'sklearn'}\n"
    'assert not banned & set(sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
