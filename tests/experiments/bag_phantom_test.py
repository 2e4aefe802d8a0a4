"""The external phantom is encoded by the main cohort's encoder, untouched."""

import dis
import inspect

import numpy as np
import pytest

from data import features, labels as label_files
from data.phantom import cohort
from experiments.bags import phantom
from experiments.encoding import encoder, tiles
from kmil_jax.models import convolutions, resnet


@pytest.fixture
def two_slides(monkeypatch):
  """Cohorts of their first two slides; counts slides that calibrate."""
  all_specs = cohort.specs
  monkeypatch.setattr(
    cohort, 'specs', lambda *args: dict(list(all_specs(*args).items())[:2])
  )
  # As many tiles, a 16th of the pixels; fewer at a time.
  small = {'tile_size': 32, 'tile_mpp': 4.0}
  monkeypatch.setattr(tiles, '_SAMPLE', 16)
  monkeypatch.setattr(encoder, 'default_batch', lambda: 16)
  monkeypatch.setattr(resnet, 'STAGES', (1, 1, 1))
  monkeypatch.setattr(phantom, '_TILES', small)
  calibrated = []
  sample = tiles.SlideTiles.sample

  def note(cohort):
    calibrated.extend(cohort.paths)
    return sample(cohort)

  monkeypatch.setattr(tiles.SlideTiles, 'sample', note)
  return calibrated


def headers(root, features_dir):
  slides = label_files.read(root / 'labels.csv').slide
  return {s: features.header(features_dir / f'{s}.h5') for s in slides}


def test_external_features_come_from_the_main_encoder(two_slides, tmp_path):
  external, features_dir = phantom.make_external(str(tmp_path))
  # Asked for first, it made the main cohort, which alone calibrated.
  main, main_dir = phantom.make(str(tmp_path))
  assert external != main
  assert two_slides == sorted((main / 'slides').iterdir())
  assert (main_dir / encoder.RANDOM_FILE).exists()
  assert not (features_dir / encoder.RANDOM_FILE).exists()
  found, mine = headers(external, features_dir), headers(main, main_dir)
  assert len(found) == len(mine) == 2
  assert all(name.startswith('ext_') for name in found)
  names = {h.attributes['encoder'] for h in (*found.values(), *mine.values())}
  assert len(names) == 1
  for header in found.values():
    assert header.attributes['level0_mpp'] == pytest.approx(0.46)
    assert header.attributes['mpp'] == 4.0
  one, other = (
    features.read(folder / f'{next(iter(slides))}.h5').features.mean(0)
    for folder, slides in ((features_dir, found), (main_dir, mine))
  )
  assert np.corrcoef(one, other)[0, 1] < 0.999

  # Finished slides stay; a missing one is encoded as it was.
  kept, slide = found  # The last is encoded last.
  before = features.read(features_dir / f'{slide}.h5').features
  kept = features_dir / f'{kept}.h5'
  touched = kept.stat().st_mtime_ns
  (features_dir / f'{slide}.h5').unlink()
  phantom.make_external(str(tmp_path))
  again = features.read(features_dir / f'{slide}.h5').features
  np.testing.assert_allclose(again, before, rtol=1e-4, atol=1e-5)
  assert kept.stat().st_mtime_ns == touched

  # Without the main encoder none is made up.
  (main_dir / encoder.RANDOM_FILE).unlink()
  phantom.make_external(str(tmp_path))  # Nothing is left to encode.
  (features_dir / f'{slide}.h5').unlink()
  with pytest.raises(RuntimeError, match=r'encoder\.safetensors.* is gone'):
    phantom.make_external(str(tmp_path))
  assert not (features_dir / f'{slide}.h5').exists()


def test_a_cache_is_of_the_code_that_the_encoder_calls():
  called = {resnet.ResNet50Trunk, resnet.Block}
  calls = [
    (resnet, inspect.unwrap(resnet.ResNet50Trunk.__call__)),
    (resnet, resnet.stages),
    (resnet, inspect.unwrap(resnet.Block.__call__)),
    (convolutions, convolutions.conv_norm),
  ]
  for module, call in calls:
    for step in dis.get_instructions(call):
      if step.opname == 'LOAD_GLOBAL':
        called.add(getattr(module, step.argval, None))
  files = {getattr(x, '__module__', '').replace('.', '/') for x in called}
  files = {f'{file}.py' for file in files if file.startswith('kmil_jax')}
  assert len(files) > 1
  files.add('kmil_jax/models/cpu.py')  # Called by both.
  assert files <= set(phantom._FEATURE_CODE)
