"""Images above Pillow's limit are read, up to one of the project's own."""

import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from data import images


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGB', 'RGBA'])
def test_a_mask_is_what_is_opaque(tmp_path, mode):
  rng = np.random.default_rng(0)
  marked, seen = rng.random((2, 20, 30)) < 0.5
  picture = Image.fromarray(marked.astype(np.uint8) * 255).convert(mode)
  alpha = 'A' in mode
  if alpha:
    picture.putalpha(Image.fromarray(seen.astype(np.uint8) * 255))
  picture.save(tmp_path / 'a.png')
  mask = images.read(tmp_path / 'a.png', OSError)
  values = images.mask_values(tmp_path, mask, OSError)
  shown = np.atleast_3d(values).any(2)
  np.testing.assert_array_equal(shown, marked & seen if alpha else marked)


def test_a_mask_by_transparency_alone_is_refused(tmp_path):
  grey = np.zeros((8, 8, 2), np.uint8)
  empty = Image.fromarray(grey)
  assert not images.mask_values(tmp_path, empty, OSError).any()
  for place in np.s_[2:4, 2:4, 1], np.s_[..., 0]:
    some = grey.copy()
    some[place] = 255
    with pytest.raises(OSError, match='nothing but by transparency'):
      images.mask_values(tmp_path, Image.fromarray(some), OSError)


def test_a_mask_whose_palette_begins_with_white_is_refused(tmp_path):
  grey = np.zeros((40, 60), np.uint8)
  grey[10:20, 10:30] = 255
  mask = Image.fromarray(grey)
  for same in mask.convert('P'), mask.convert('RGB').convert('P'):
    values = images.mask_values(tmp_path, same, OSError)
    np.testing.assert_array_equal(values != 0, grey != 0)
  with pytest.raises(OSError, match='colours of its palette mark other'):
    images.mask_values(tmp_path, mask.quantize(2), OSError)


def test_what_is_too_large_is_refused_by_its_header(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
  path = tmp_path / 'a.png'
  Image.new('L', (30, 40)).save(path)
  assert images.read(path, OSError).size == (30, 40)
  assert Image.MAX_IMAGE_PIXELS == 10  # Of whatever else is read.
  content = bytearray(path.read_bytes())
  content[16:24] = struct.pack('>2I', 2**16, 2**15)
  content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
  path.write_bytes(content)
  with pytest.raises(OSError, match=r'a\.png: .* 65536 x 32768 px .* coarser'):
    images.read(path, OSError)
  path.write_bytes(content[:40])
  with pytest.raises(OSError, match=r'a\.png: cannot be read'):
    images.read(path, OSError)
