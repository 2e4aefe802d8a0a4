"""Tensors of torch.save without torch: the same numbers, and nothing else."""

import errno
import io
import os
import pickle
import zipfile

import hypothesis
from hypothesis import given, strategies as st
import numpy as np
import pytest
import torch

from data import features, torch_files
from data.features import FeatureError

read = lambda path: features.read(path).features
ROWS = torch.arange(24, dtype=torch.float32).reshape(6, 4) / 7


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize(
  'view',
  [
    lambda x: x,
    lambda x: x.T,
    lambda x: x[2:5, 1:3],
    lambda x: x[None],
    lambda x: x[:0],
    lambda x: x[::2, ::3].clone().requires_grad_(),
  ],
)
def test_tensors_are_torchs_own(tmp_path, dtype, view):
  tensor = view(ROWS.to(getattr(torch, dtype)))
  torch.save(tensor, tmp_path / 'a.pt')
  stored = torch_files.Tensor(tmp_path / 'a.pt')
  got = stored[()]
  assert (
    got.dtype
    == stored.dtype
    == (np.float16 if dtype == 'float16' else np.float32)
  )
  np.testing.assert_array_equal(got, tensor.detach().float().numpy())
  assert stored.shape == got.shape


def test_newer_pickles_are_read_too(tmp_path):
  torch.save(ROWS, tmp_path / 'a.pt', pickle_protocol=4)
  np.testing.assert_array_equal(read(tmp_path / 'a.pt'), ROWS)


def test_big_endian_numbers_are_turned_round(tmp_path):
  torch.save(ROWS, tmp_path / 'a.pt')
  with zipfile.ZipFile(tmp_path / 'a.pt') as old:
    parts = {name: old.read(name) for name in old.namelist()}
  with zipfile.ZipFile(tmp_path / 'b.pt', 'w') as new:
    for name, content in parts.items():
      if name.endswith('byteorder'):
        content = b'big'
      if name.endswith('data/0'):
        content = np.frombuffer(content, '<f4').astype('>f4').tobytes()
      new.writestr(name, content)
  np.testing.assert_array_equal(read(tmp_path / 'b.pt'), ROWS)


class Command:
  """A pickle that runs a command when it is loaded."""

  def __reduce__(self):
    return os.system, ('touch pwned',)


@pytest.mark.parametrize(
  ('held', 'said'),
  [
    ({'features': ROWS}, 'EMPTY_DICT has no place'),
    ([ROWS, ROWS], 'EMPTY_LIST has no place'),
    (ROWS.double(), 'of type DoubleStorage'),
    (ROWS.long(), 'of type LongStorage'),
    (Command(), 'asks for posix system'),
    (torch.nn.Parameter(ROWS), 'asks for torch._utils _rebuild_parameter'),
    ('text', 'it holds str, not one tensor'),
  ],
)
def test_all_else_is_refused_unrun(tmp_path, monkeypatch, held, said):
  monkeypatch.chdir(tmp_path)
  torch.save(held, tmp_path / 'a.pt')
  with pytest.raises(FeatureError, match=said) as error:
    features.read(tmp_path / 'a.pt')
  assert 'a.pt: no tensor that can be read' in str(error.value)
  assert 'torch.save(features, path)' in str(error.value)
  assert not (tmp_path / 'pwned').exists()


def test_files_of_old_torch_are_told_apart(tmp_path):
  path = tmp_path / 'a.pt'
  torch.save(ROWS, path, _use_new_zipfile_serialization=False)
  with pytest.raises(FeatureError, match=r'by torch before 1\.6'):
    features.read(path)


NUMBERS = ROWS.numpy().tobytes()


def archive(pickled, numbers=NUMBERS, method=zipfile.ZIP_STORED):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', method) as new:
    new.writestr('a/data.pkl', pickled)
    new.writestr('a/data/0', numbers)
  return file.getvalue()


def tensor(count, offset, shape, stride, kind=b'FloatStorage'):
  """The pickle of a tensor that may not make sense."""
  whole = lambda n: b'\x8a\x08' + n.to_bytes(8, 'little', signed=True)
  several = lambda numbers: b'(' + b''.join(map(whole, numbers)) + b't'
  return (
    b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage'
    + b'ctorch\n'
    + kind
    + b'\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu'
    + whole(count)
    + b'tQ'
    + whole(offset)
    + several(shape)
    + several(stride)
    + b'\x89ccollections\nOrderedDict\n)RtR.'
  )


def test_the_hand_made_pickle_is_sound(tmp_path):
  (tmp_path / 'a.pt').write_bytes(archive(tensor(24, 0, (6, 4), (4, 1))))
  np.testing.assert_array_equal(read(tmp_path / 'a.pt'), ROWS)


# Tuples of twice the same tuple, 40 deep, in place of the type of numbers.
NESTED = tensor(24, 0, (6, 4), (4, 1)).replace(
  b'ctorch\nFloatStorage\n',
  b'X\x01\x00\x00\x00a' + b'q\x00h\x00\x86' * 40,
)


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    (archive(tensor(24, 0, (2**40, 4), (4, 1))), 'takes more than the 24'),
    # One number seen a million times over.
    (archive(tensor(24, 0, (10**6, 10**6), (0, 0))), 'takes more than the 24'),
    (archive(tensor(2**40, 0, (6, 4), (4, 1))), 'are announced, 96 bytes are'),
    (archive(tensor(24, 1, (6, 4), (4, 1))), 'takes more than the 24'),
    (archive(tensor(24, -4, (6, 4), (4, 1))), 'makes no sense'),
    (archive(tensor(24, 0, (6, 4), (-4, 1))), 'makes no sense'),
    (archive(tensor(24, 0, (6, 4), (4,))), 'makes no sense'),
    (archive(b'\x80\x02' + b'N' * 2**17 + b'.'), 'larger than it should be'),
    (archive(tensor(24, 0, (6, 4), (4, 1)), b'\0' * 2**25), 'larger than it'),
    (
      archive(tensor(24, 0, (6, 4), (4, 1)), method=zipfile.ZIP_DEFLATED),
      'compressed',
    ),
    (archive(pickle.dumps(2**70, 0)), 'no tensor'),
    (archive(b'\x80\x02(((('), 'no tensor'),
    (archive(NESTED), 'in an unknown way'),
    (archive(b'r\xff\xff\xff\x7f.'), 'no tensor'),  # A huge memo.
    (b'', 'not a zip'),
  ],
)
def test_hostile_files_are_refused_and_take_no_memory(tmp_path, content, said):
  (tmp_path / 'a.pt').write_bytes(content)
  with pytest.raises(FeatureError, match=said):
    features.read(tmp_path / 'a.pt')
  for act in (features.read, features.header):
    if 'announced' not in said and 'larger' not in said:
      with pytest.raises(FeatureError, match=r'a\.pt: '):
        act(tmp_path / 'a.pt')


@hypothesis.settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(0, 255), st.integers(1, 600))
def test_damaged_files_are_named(tmp_path_factory, place, value, length):
  folder = tmp_path_factory.mktemp('fuzz')
  whole = archive(tensor(24, 0, (6, 4), (4, 1)))
  changed = bytearray(whole)
  changed[place % len(whole)] = value
  for content in (changed, whole[:length], b'PK\x03\x04' + bytes(changed)[:99]):
    (folder / 'a.pt').write_bytes(content)
    try:
      got = features.read(folder / 'a.pt').features
    except FeatureError as error:
      assert 'a.pt: no tensor' in str(error)
    else:
      assert got.size <= 24


@pytest.mark.parametrize(
  'where,error,said',
  [
    ('zipfile.ZipFile.read', MemoryError('of 9 GiB'), 'memory \\(of 9 GiB\\)'),
    ('numpy.frombuffer', MemoryError(), 'memory \\(MemoryError\\)\\.$'),
    ('zipfile.ZipFile.read', OSError(errno.EIO, 'Broken'), 'its disk'),
  ],
)
def test_what_is_no_fault_of_the_file_is_not_blamed_on_it(
  tmp_path, monkeypatch, where, error, said
):
  path = tmp_path / 'a.pt'
  torch.save(torch.ones(2, 3), path)

  def fail(*_):
    raise error

  monkeypatch.setattr(where, fail)
  with pytest.raises(FeatureError, match=r'a\.pt: .*' + said) as told:
    features.read(path)
  assert 'Save the features' not in str(told.value)


def test_a_directory_past_the_files_end_is_damage(tmp_path):
  path = tmp_path / 'a.pt'
  torch.save(torch.ones(2, 3), path)
  content = bytearray(path.read_bytes())
  content[content.rindex(b'PK\6\6') + 49] ^= 0xFF  # Of its offset.
  path.write_bytes(content)
  with pytest.raises(FeatureError, match=r'a\.pt: no tensor'):
    features.read(path)


def test_the_tensor_of_clams_pt_files_is_that_of_its_h5(real_data):
  folder = real_data / 'feature_files/clam/feats'
  pt = features.read(next((folder / 'pt_files').glob('*.pt')))
  h5 = features.read(next((folder / 'h5_files').glob('*.h5')))
  np.testing.assert_array_equal(pt.features, h5.features)
  assert pt.coords is None and pt.features.dtype == np.float32
  header = features.header(pt.path)
  assert (header.length, header.width) == pt.features.shape
