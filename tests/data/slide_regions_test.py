"""Outlines of what counts as tissue, as users draw them."""

import json

import pytest

from data import tiling
from data.slides import SlideError

RING = [[0, 0], [9, 0], [9, 9], [0, 0]]


def write(path, *rings):
  shape = {'type': 'Polygon', 'coordinates': list(rings)}
  features = [{'type': 'Feature', 'geometry': shape, 'properties': {}}]
  content = {'type': 'FeatureCollection', 'features': features if rings else []}
  path.write_text(json.dumps(content))


def test_files_go_with_slides_by_their_names(tmp_path):
  write(tmp_path / '007.a.geojson', RING, RING)
  (tmp_path / 'notes.txt').write_text('not outlines')
  found = tiling.read_regions(tmp_path, {'007.a', 'b'})
  assert list(found) == ['007.a']
  assert [ring.hole for ring in found['007.a']] == [False, True]


def test_all_files_that_cannot_be_used_are_named(tmp_path):
  write(tmp_path / 'a.geojson', RING)
  write(tmp_path / 'a.json', RING)
  write(tmp_path / 'other.geojson', RING)
  write(tmp_path / 'b.geojson')
  (tmp_path / 'c.xml').write_text('<a')
  with pytest.raises(SlideError) as error:
    tiling.read_regions(tmp_path, {'a', 'b', 'c'})
  lines = str(error.value).splitlines()
  assert len(lines) == 4
  assert 'a.json: a second file of slide a' in lines[0]
  assert 'b.geojson: no outlines' in lines[1]
  assert 'c.xml: no outlines in the layout of GeoJSON, NCRF or ASAP' in lines[2]
  assert 'other.geojson: there is no slide other' in lines[3]


@pytest.mark.parametrize('there', [False, True])
def test_a_folder_without_outlines_is_refused(tmp_path, there):
  folder = tmp_path / 'outlines'
  if there:
    folder.mkdir()
  with pytest.raises(SlideError, match='outlines: no'):
    tiling.read_regions(folder, {'a'})
