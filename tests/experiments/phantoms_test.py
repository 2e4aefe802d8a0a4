"""Phantoms in a cache: the encoder of the first, the code that fills it."""

import dis
import inspect

import numpy as np
import pytest

from data import features, labels as label_files
from data.phantom import cohort
from experiments.encoding import encoder
from experiments.run import phantoms
from kmil_jax.models import convolutions, efficientnet, mobilenet


@pytest.fixture
def two_slides(monkeypatch):
  """Cohorts of their first two slides; an encoder is compiled once."""
  all_specs = cohort.specs
  monkeypatch.setattr(
    cohort, 'specs', lambda *args: dict(list(all_specs(*args).items())[:2])
  )
  # As many tiles, a 16th of the pixels; fewer at a time.
  small = {'tile_size': 32, 'tile_mpp': 4.0}
  monkeypatch.setattr(encoder, 'default_batch', lambda: 16)
  make, made = encoder.make_encoder, {}

  def make_once(name, weights, **about):
    if name not in made:
      made[name] = make(name, weights, **about)
    return made[name]

  monkeypatch.setattr(encoder, 'make_encoder', make_once)
  monkeypatch.setattr(phantoms, '_TILES', small)


@pytest.mark.slow
def test_both_cohorts_are_encoded_by_the_default_encoder(two_slides, tmp_path):
  external, features_dir = phantoms.make_cohort(str(tmp_path), external=True)
  main, main_dir = phantoms.make_cohort(str(tmp_path))
  assert external != main
  first, last = label_files.read(external / 'labels.csv').slide
  mine, _ = label_files.read(main / 'labels.csv').slide
  assert first.startswith('ext_')
  kept, path = features_dir / f'{first}.h5', features_dir / f'{last}.h5'
  before, of_main = map(features.read, (path, main_dir / f'{mine}.h5'))
  assert before.attributes['encoder'] == of_main.attributes['encoder']
  assert before.attributes['encoder'].startswith(encoder.DEFAULT)
  assert before.attributes['level0_mpp'] == pytest.approx(0.46)
  assert before.attributes['mpp'] == 4.0
  means = before.features.mean(0), of_main.features.mean(0)
  assert np.corrcoef(*means)[0, 1] < 0.999

  # Finished slides stay; a missing one is encoded as it was.
  touched = kept.stat().st_mtime_ns
  path.unlink()
  phantoms.make_cohort(str(tmp_path), external=True)
  again = features.read(path).features
  np.testing.assert_allclose(again, before.features, rtol=1e-4, atol=1e-5)
  assert kept.stat().st_mtime_ns == touched


def test_a_cache_is_of_the_code_that_the_encoder_calls():
  network, block = efficientnet.EfficientNetLite0, mobilenet.InvertedResidual
  called = {network, block}
  calls = [
    (efficientnet, inspect.unwrap(network.__call__)),
    (mobilenet, inspect.unwrap(block.__call__)),
    (convolutions, convolutions.conv_norm),
  ]
  for module, call in calls:
    for step in dis.get_instructions(call):
      if step.opname == 'LOAD_GLOBAL':
        called.add(getattr(module, step.argval, None))
  files = {getattr(x, '__module__', '').replace('.', '/') for x in called}
  files = {f'{file}.py' for file in files if file.startswith('kmil_jax')}
  assert len(files) > 1
  files.add('kmil_jax/models/cpu.py')
  assert files <= set(phantoms._FEATURE_CODE)


def test_a_caches_name_follows_the_content_of_all_files(tmp_path, monkeypatch):
  monkeypatch.setattr(phantoms, '_ROOT', tmp_path)
  (tmp_path / 'a.py').write_text('one')
  (tmp_path / 'b.py').write_text('two')

  def fresh(*patterns):
    phantoms.code_hash.cache_clear()
    return phantoms.code_hash(*patterns)

  first = fresh('*.py')
  assert len(first) == 8 and fresh('a.py', 'b.py') == first
  assert fresh('a.py') != first
  (tmp_path / 'b.py').write_text('three')
  now = fresh('*.py')
  assert now != first
  (tmp_path / 'a.py').write_text('edited meanwhile')
  assert phantoms.code_hash('*.py') == now  # What runs is the old code.
  phantoms.code_hash.cache_clear()
