"""Models as files: the programs say what the models say, of any bag."""

import dataclasses
import io
import re
import zipfile

import chex
import jax
import jax.numpy as jnp
from jax_alone import NEEDED, READER, alone
import numpy as np
import pytest

from kmil_jax import calibration, export, exported, inference
from kmil_jax.export import Archive, ExportError
from kmil_jax.inference import Design
from kmil_jax.models import SPECS, kmil
from kmil_jax.models.kmil import Choice

WIDTH, CLASSES, FOLDS = 12, 3, 2
CHOICE = Choice(score='one_minus_var', drop_per_mille=400)
# What is made of the outputs, or is in them, beyond the models' own.
OPTIONS = {
  'kmil': {'choice': CHOICE, 'combine': True},
  'dtfd_gated': {'options': {'distill': 'maxmins', 'total_instances': 8}},
}
# Of each class one form, ABMIL and DSMIL in KMIL; the others differ in options.
EXECUTED = ('abmil_ilse_plain', 'dtfd_gated', 'kmil')


def make(name):
  design = Design(
    model=name, num_classes=CLASSES, width=WIDTH, **OPTIONS.get(name, {})
  )
  rng = np.random.default_rng(0)
  folds = [
    jax.tree.map(
      lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(leaf.dtype),
      design.like(),
    )
    for _ in range(FOLDS)
  ]
  return design, folds


def bag(count):
  rng = np.random.default_rng(count)
  return rng.normal(size=(count, WIDTH)).astype(np.float32)


def expected(design, params, x):
  """What one fold's networks say of an unpadded bag."""
  networks, seen = design.networks(), jnp.ones(len(x), bool)
  apply = lambda name, seen: networks[name].apply(
    {'params': params[name]}, x, seen, train=False
  )
  if inference.CHOOSER in networks:
    score = kmil.instance_scores(
      apply(inference.CHOOSER, seen).instance_logits, CHOICE.score
    )
    keep = jnp.argsort(-score, stable=True)[: len(x) * 6 // 10]
    seen = jnp.zeros(len(x), bool).at[keep].set(True)
  output = apply(inference.MODEL, seen)
  prob = jax.nn.softmax(output.logits)
  if design.combine:
    highest = jnp.where(seen[:, None], output.instance_logits, -jnp.inf).max(0)
    prob = (prob + jax.nn.softmax(highest)) / 2
  return {
    'prob': prob,
    'attention': output.attention,
    'instance_prob': jax.nn.softmax(output.instance_logits),
    'kept': seen,
  }


@pytest.fixture(scope='module')
def archives():
  """What files of all models hold, and the folds' parameters."""
  by_name = {}
  for name in SPECS:
    design, folds = make(name)
    weights = inference.stack(folds)
    programs = design.lower(weights) if name != 'transmil' else {}
    by_name[name] = design, folds, Archive({'is': name}, weights, programs)
  return by_name


@pytest.mark.parametrize('name', EXECUTED)
def test_a_file_says_what_its_models_say(name, archives, tmp_path):
  design, folds, archive = archives[name]
  (tmp_path / 'model').write_bytes(export.pack(archive))
  archive = export.read(tmp_path / 'model')
  assert archive.card['is'] == name
  x = bag(11)
  padded = np.full((64, WIDTH), 9, np.float32)  # Any finite number.
  padded[: len(x)] = x
  output = archive.predict()(archive.weights, padded, len(x))
  run = jax.jit(lambda params: expected(design, params, x))
  for r, params in enumerate(folds):
    for key, value in run(params).items():
      got = np.asarray(output[key][r])
      got = got if key == 'prob' else got[: len(x)]
      np.testing.assert_allclose(got, value, atol=3e-6, err_msg=key)
  assert not np.asarray(output['kept'])[:, len(x) :].any()
  assert np.ptp(output['prob'], axis=0).max() > 1e-3  # Of two folds.


def test_programs_are_for_every_platform_and_any_bag(archives):
  for name, (_, _, archive) in archives.items():
    if name == 'transmil':
      continue
    assert archive.lengths() is None
    (program,) = archive.programs.values()
    exported = jax.export.deserialize(bytearray(program))
    assert exported.platforms == ('cpu', 'cuda', 'tpu')
    assert str(exported.in_avals[-2].shape) == '(n, 12)'


def test_a_model_that_needs_the_length_has_a_program_for_each(monkeypatch):
  monkeypatch.setattr(export, 'LENGTHS', (16, 300))
  design, folds = make('transmil')
  weights = inference.stack(folds[:1])
  archive = Archive({}, weights, design.lower(weights))
  assert archive.lengths() == (16, 300)
  exported = [
    jax.export.deserialize(bytearray(p)) for p in archive.programs.values()
  ]
  assert [e.in_avals[-2].shape for e in exported] == [(16, 12), (300, 12)]
  assert [e.out_avals[0].shape for e in exported] == [(1, 16, 1), (1, 300, 1)]


def test_equal_models_give_equal_bytes_that_tell_nothing_of_the_machine(
  archives,
):
  design, _, archive = archives['kmil']
  again = dataclasses.replace(archive, programs=design.lower(archive.weights))
  assert export.pack(again) == export.pack(archive)
  for program in archive.programs.values():
    assert b'.py' not in program and b'/kmil_jax' not in program


PREDICT = """
import sys
import numpy as np
sys.path.insert(0, 'model.kmil')
import kmil_model

model = kmil_model.Model()
for count in (2, 70):
  output = model.predict(np.load(f'{count}.npy'))
  np.savez(f'{count}.npz', **output)
"""


def test_a_file_runs_with_jax_alone_on_bags_of_any_length(archives, tmp_path):
  design, folds, archive = archives['kmil']
  card = {'width': WIDTH, 'classes': [*'abc'], 'temperature': [None, 2.0]}
  card['settings'] = design.options
  archive = dataclasses.replace(archive, card=card)
  (tmp_path / 'model.kmil').write_bytes(export.pack(archive))
  for count in (2, 70):
    np.save(tmp_path / f'{count}.npy', bag(count))
  whole = (*NEEDED, READER)
  done = alone(tmp_path, whole, '-c', PREDICT)
  assert done.returncode == 0, done.stderr
  run = jax.jit(lambda params, x: expected(design, params, x))
  for count in (2, 70):
    output = np.load(tmp_path / f'{count}.npz')
    want = [run(params, bag(count)) for params in folds]
    prob = [np.asarray(one['prob'], float) for one in want]
    prob[1] = calibration.scale(prob[1][None], 2.0)[0]
    np.testing.assert_allclose(output['prob_of_folds'], prob, atol=3e-6)
    np.testing.assert_allclose(output['prob'], np.mean(prob, 0), atol=3e-6)
    for key in ('attention', 'instance_prob', 'kept'):
      each = [one[key] for one in want]
      np.testing.assert_allclose(output[key], each, atol=3e-6, err_msg=key)
  done = alone(tmp_path, whole, 'model.kmil', '70.npy')
  assert done.stdout.split()[::2] == ['a', 'b', 'c'], done.stderr
  done = alone(tmp_path, NEEDED, 'model.kmil', '70.npy')
  assert done.stderr.startswith('error: ') and READER in done.stderr


def test_bags_that_a_file_cannot_take_are_refused(archives, tmp_path):
  card = {'width': WIDTH, 'settings': {}, 'temperature': [None, None]}
  archive = dataclasses.replace(archives['abmil'][2], card=card)
  (tmp_path / 'model.kmil').write_bytes(export.pack(archive))
  model = exported.Model(tmp_path / 'model.kmil')
  assert model.predict(bag(1))['prob'].sum() == pytest.approx(1)
  for x, message in (
    (bag(3)[:, 1:], r'\(3, 11\): give \[n, 12\]'),
    (bag(3)[:0], 'n at least 1'),
    (bag(3) * np.nan, 'NaN'),
  ):
    with pytest.raises(ExportError, match=message):
      model.predict(x)


def rewritten(content, path, change):
  """Writes the zip anew, its entries being those `change` returns.

  Its hashes are left out, as in files of older versions.
  """
  (path / 'whole').write_bytes(content)
  with zipfile.ZipFile(path / 'whole') as file:
    entries = {info.filename: file.read(info) for info in file.infolist()}
  with zipfile.ZipFile(path / 'other', 'w') as file:
    entries.pop('sha256.json')
    for name, data in change(entries).items():
      file.writestr(name, data)
  return (path / 'other').read_bytes()


def without(name):
  return lambda entries: {k: v for k, v in entries.items() if k != name}


@pytest.mark.parametrize(
  'damage,message',
  [
    (lambda content, path: b'', 'not a complete model'),
    (lambda content, path: content[:-400], 'not a complete model'),
    (lambda content, path: content[len(content) // 2 :], 'not a complete'),
    (
      lambda content, path: content.replace(b'\0\0', b'ab', 9),
      'not a complete',
    ),
    (lambda c, path: rewritten(c, path, without('card.json')), 'card.json'),
    (lambda c, path: rewritten(c, path, without(export.ANY)), 'no program'),
    (
      lambda c, path: rewritten(c, path, lambda e: e | {'card.json': b'[1'}),
      'not a complete model',
    ),
    (
      lambda c, path: rewritten(c, path, lambda e: e | {'../evil': b'1'}),
      ', ../evil, not',
    ),
  ],
)
def test_damaged_files_are_refused_by_name(archives, tmp_path, damage, message):
  content = damage(export.pack(archives['abmil'][2]), tmp_path)
  (tmp_path / 'model.kmil').write_bytes(content)
  with pytest.raises(ExportError) as error:
    export.read(tmp_path / 'model.kmil')
  assert message in str(error.value)
  assert 'model.kmil' in str(error.value)


def test_what_was_changed_is_refused_and_what_has_no_hashes_is_read(
  archives, tmp_path
):
  path, archive = tmp_path / 'model.kmil', archives['abmil'][2]
  content = export.pack(archive)
  with zipfile.ZipFile(io.BytesIO(content)) as file:
    entries = {info.filename: file.read(info) for info in file.infolist()}
  for name, data in entries.items():
    changed = bytes([*data[:-3], data[-3] ^ 1, *data[-2:]])
    with zipfile.ZipFile(path, 'w') as file:
      for other in entries:
        file.writestr(other, changed if other == name else entries[other])
    with pytest.raises(ExportError, match='was changed since it was written'):
      export.read(path)
  # An entry's comment swallows those after it in the table of contents.
  starts = [at.start() for at in re.finditer(b'PK\1\2', content)]
  assert len(starts) == len(entries)
  for at in starts[:-1]:
    path.write_bytes(content[: at + 32] + b'\xff' + content[at + 33 :])
    with pytest.raises(ExportError):
      export.read(path)
  path.write_bytes(rewritten(content, tmp_path, lambda entries: entries))
  chex.assert_trees_all_equal(export.read(path).weights, archive.weights)


def test_a_program_of_another_jax_is_refused(archives):
  archive = dataclasses.replace(
    archives['abmil'][2], programs={export.ANY: b'of tomorrow'}
  )
  with pytest.raises(ExportError, match='cannot read the program'):
    archive.predict()


def test_padded_lengths_are_few_and_close():
  lengths = [export.padded_length(n) for n in range(1, 20_000)]
  assert lengths[:64] == [64] * 64 and lengths[64] == 96
  assert len(set(lengths)) < 20
  for n in range(64, 20_000, 7):
    assert n <= lengths[n - 1] < 1.5 * n
  assert export.padded_length(3, least=100) == 128
  assert [export.padded_length(n, (16, 300)) for n in (16, 17)] == [16, 300]
  with pytest.raises(ExportError, match='301 instances'):
    export.padded_length(301, (16, 300))
