"""Any bytes in the place of CAMELYON16's files are read or named."""

import gzip
import json

from hypothesis import given, strategies as st
import numpy as np
import pytest

from data.camelyon16 import annotations, patches, slides
from data.labelled_tiles import TileError

WHOLE = {
  'reference.csv': b'Test_001,Tumor,IDC,Macro\nTest_003,Normal,DCIS,None\n',
  'list.txt': b'tumor_001,64,128\ntumor_002,640,1280\n',
  'tumor_001.json': json.dumps(
    {
      'positive': [{'name': 'a', 'vertices': [[0, 0], [9, 0], [9, 9.5]]}],
      'negative': [[[1, 1], [2, 1], [2, 2]]],
    }
  ).encode(),
  'tumor_001.xml': (
    b'<ASAP_Annotations><Annotations><Annotation Name="0" Type="Polygon" '
    b'PartOfGroup="_0"><Coordinates><Coordinate Order="0" X="1" Y="2" />'
    b'<Coordinate Order="1" X="9" Y="2" /><Coordinate Order="2" X="9" Y="9" />'
    b'</Coordinates></Annotation></Annotations></ASAP_Annotations>'
  ),
}
WHOLE['all.json.gz'] = gzip.compress(
  b'{"tumor_001": %s}' % WHOLE['tumor_001.json'], mtime=0
)


def read(path):
  """Reads a file as what its name says."""
  if path.suffix == '.csv':
    return slides.read_reference(path)
  if path.suffix == '.txt':
    return patches.read(path)
  source = path if path.suffix == '.gz' else path.parent
  return annotations.find(source).rings('tumor_001')


def changed(content, draw):
  """The file with some bytes others, some lost, or other bytes at all."""
  if draw(st.booleans()):
    text = st.text('[]{}<>"/:,.-0123456789 \n\0aeinpstuvx_TN', max_size=80)
    return draw(st.binary(max_size=60) | text.map(str.encode))
  content = bytearray(content)
  for _ in range(draw(st.integers(1, 3))):
    place = draw(st.integers(0, len(content) - 1))
    content[place] = draw(st.integers(0, 255))
  return bytes(content[: draw(st.integers(1, len(content)))])


@pytest.mark.parametrize('name', WHOLE)
def test_the_whole_file_is_read(name, tmp_path):
  (tmp_path / name).write_bytes(WHOLE[name])
  assert len(read(tmp_path / name)) in (1, 2)


@pytest.mark.filterwarnings('ignore:.* no area')
@pytest.mark.parametrize('name', WHOLE)
@given(data=st.data())
def test_any_bytes_are_read_or_a_named_fault(name, data, tmp_path_factory):
  path = tmp_path_factory.mktemp('fuzz') / name
  path.write_bytes(changed(WHOLE[name], data.draw))
  try:
    found = read(path)
  except TileError as e:
    assert str(path.parent) in str(e)
    return
  if isinstance(found, dict):
    assert set(found.values()) <= {'normal', 'tumor'}
  elif isinstance(found, patches.Patches):
    assert len(found) == len(found.xy) and (found.xy >= 0).all()
  else:
    for ring in found:
      assert ring.corners.shape[1] == 2 and len(ring.corners) > 2
      assert np.isfinite(ring.corners).all()
