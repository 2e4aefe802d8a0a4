"""Tensors of torch.save without torch: the same numbers, and nothing else."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from data import features, torch_files
from data.features import FeatureError

ROWS = torch.arange(24, dtype=torch.float32).reshape(6, 4) / 7


@pytest.mark.parametrize('dtype', ['float64', 'float32', 'float16', 'bfloat16'])
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
@pytest.mark.parametrize('protocol', [2, 4])
def test_tensors_are_torchs_own(tmp_path, dtype, view, protocol):
  tensor = view(ROWS.to(getattr(torch, dtype)))
  torch.save(tensor, tmp_path / 'a.pt', pickle_protocol=protocol)
  stored = torch_files.load(tmp_path / 'a.pt')
  numbers = stored[()]
  expected = np.dtype('float32' if dtype == 'bfloat16' else dtype)
  assert numbers.dtype == stored.dtype == expected
  np.testing.assert_array_equal(numbers, tensor.detach().double().numpy())
  assert stored.shape == numbers.shape


class Command:
  """A pickle that runs a command when it is loaded."""

  def __reduce__(self):
    return os.system, ('touch pwned',)


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ({'features': ROWS}, 'it holds _Dict, not one tensor'),
    ([ROWS, ROWS], 'it holds list, not one tensor'),
    (ROWS.cfloat(), 'of type ComplexFloatStorage'),
    (Command(), 'asks for posix system'),
    ('text', 'it holds str, not one tensor'),
  ],
)
def test_all_else_is_refused_unrun(tmp_path, monkeypatch, content, words):
  monkeypatch.chdir(tmp_path)
  torch.save(content, tmp_path / 'a.pt')
  with pytest.raises(FeatureError, match=words) as error:
    features.read(tmp_path / 'a.pt')
  assert 'a.pt: no tensor that can be read' in str(error.value)
  assert 'torch.save(features, path)' in str(error.value)
  assert not (tmp_path / 'pwned').exists()


def archive(pickled, numbers=None, method=zipfile.ZIP_STORED, **members):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', method) as new:
    new.writestr('a/data.pkl', pickled)
    new.writestr('a/data/0', numbers or ROWS.numpy().tobytes())
    for name, content in members.items():
      new.writestr(f'a/{name}', content)
  return file.getvalue()


def tensor(count=24, offset=0, shape=(6, 4), stride=(4, 1)):
  """The pickle of a tensor that may not make sense."""
  whole = lambda n: b'\x8a\x08' + n.to_bytes(8, 'little', signed=True)
  several = lambda numbers: b'(' + b''.join(map(whole, numbers)) + b't'
  return (
    b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage'
    + b'ctorch\nFloatStorage\n'
    + b'X\x01\x00\x00\x000X\x03\x00\x00\x00cpu'
    + whole(count)
    + b'tQ'
    + whole(offset)
    + several(shape)
    + several(stride)
    + b'\x89ccollections\nOrderedDict\n)RtR.'
  )


BIG_ENDIAN = ROWS.numpy().astype('>f4').tobytes()


@pytest.mark.parametrize(
  'content',
  [archive(tensor()), archive(tensor(), BIG_ENDIAN, byteorder=b'big')],
)
def test_numbers_of_either_byte_order_are_read(tmp_path, content):
  (tmp_path / 'a.pt').write_bytes(content)
  found = features.read(tmp_path / 'a.pt').features
  np.testing.assert_array_equal(found, ROWS)


OLD = io.BytesIO()
torch.save(ROWS, OLD, _use_new_zipfile_serialization=False)
# Tuples of twice the same tuple, 40 deep, in place of the type of numbers.
NESTED = tensor().replace(
  b'ctorch\nFloatStorage\n', b'X\x01\x00\x00\x00a' + b'q\x00h\x00\x86' * 40
)
# A dict whose key would take 2**40 steps to hash.
KEYED = b'\x80\x02}X\x01\x00\x00\x00a' + b'q\x00h\x00\x86' * 40 + b'Ns.'
# The same inside a dict's arguments; and so deep that to hash it crashes.
DICT = b'\x80\x02ccollections\nOrderedDict\n(](X\x01\x00\x00\x00a'
LISTED = DICT + b'q\x00h\x00\x86' * 40 + b'NteatR.'
DEEP = DICT + b'\x85' * 10**6 + b'NteatR.'
# It stands for the place of numbers in a file from before torch 1.6.
PLACED = b''.join(
  pickle.dumps(part, 2)
  for part in (torch_files._OLD_MAGIC, 1001, {'little_endian': True}, {})
) + (b'\x80\x02](X\x01\x00\x00\x00a' + b'q\x00h\x00\x86' * 40 + b'e.')
# Twos, whose product takes hours; and what is long, a thousand times over.
AXES = tensor(shape=(2,) * 10**5, stride=(0,) * 10**5)
LABELS = (
  b'\x80\x02((X\x01\x00\x00\x00sctorch\nFloatStorage\nK\x00K\x00K\x01'
  + b'N' * 10**6
  + b'tq\x00Q'
  + b'h\x00Q' * 1000
  + b't.'
)
CALLS = (
  b'\x80\x02(ctorch._utils\n_rebuild_parameter\nq\x00('
  + b'N' * 10**6
  + b'tq\x01R'
  + b'h\x00h\x01R' * 1000
  + b't.'
)
# Other defaults for the function that stands for torch's.
BUILT = b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.'


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (archive(tensor(shape=(2**40, 4))), 'takes more than the 24'),
    # One number seen a million times over.
    (
      archive(tensor(shape=(10**6, 10**6), stride=(0, 0))),
      'takes more than the 24',
    ),
    (archive(tensor(count=2**40)), 'are announced, 96 bytes are'),
    (archive(tensor(offset=1)), 'takes more than the 24'),
    (archive(tensor(offset=-4)), 'makes no sense'),
    (archive(tensor(stride=(-4, 1))), 'makes no sense'),
    (archive(tensor(stride=(4,))), 'makes no sense'),
    (archive(b'\x80\x02' + b'N' * 2**24 + b'.'), 'larger than it should be'),
    (archive(tensor(), b'\0' * 2**25), 'larger than it'),
    (archive(tensor(), method=zipfile.ZIP_DEFLATED), 'compressed'),
    (archive(pickle.dumps(2**70, 0)), 'no tensor'),
    (archive(b'\x80\x02(((('), 'no tensor'),
    (archive(NESTED), 'in an unknown way'),
    (archive(b'r\xff\xff\xff\x7f.'), 'no tensor'),  # A huge memo.
    (b'', 'no tensor'),
    (OLD.getvalue()[:-1], '24 numbers are announced, 95 bytes are'),
    (OLD.getvalue()[:300], 'no tensor'),
    (archive(KEYED), 'a key that is no name'),
    (archive(LISTED), 'no tensor'),
    (archive(DEEP), 'no tensor'),
    (PLACED, 'a key that is no name'),
    (archive(AXES), 'makes no sense'),
    (archive(LABELS), 'in an unknown way'),
    (archive(CALLS), 'too many arguments'),
    (archive(BUILT), 'gives attributes to what has none'),
    (archive(tensor().replace(b'Q', b'')), 'it has no numbers'),
  ],
)
def test_hostile_files_are_refused_and_take_no_memory(tmp_path, content, words):
  (tmp_path / 'a.pt').write_bytes(content)
  with pytest.raises(FeatureError, match=rf'a\.pt: .*{words}'):
    features.read(tmp_path / 'a.pt')
