"""The local page of slides: what it serves and what it refuses."""

import hashlib
import importlib.resources
import json
import urllib.parse

import drawn_maps
import pytest
from served_slides import NAMES, ask, read

from experiments.maps import tile_scores
from experiments.maps.tile_scores import MapError
from experiments.viewer import server

SIDE = drawn_maps.SIDE
SHA256 = '14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad'


def test_it_listens_on_this_machine_only(served):
  assert served.server_address[0] == '127.0.0.1'
  assert served.url.startswith(f'http://127.0.0.1:{served.server_port}/')


@pytest.mark.parametrize(
  'host',
  ['', 'evil.example', 'evil.example:{port}', '127.0.0.1', 'localhost:1'],
)
def test_other_hosts_are_refused(served, host):
  host = host.format(port=served.server_port)
  for path in ('', 'slides', 'slides/007.a/'):
    answer, content = ask(served, path, host=host)
    assert answer.status == 403
    assert b'007' not in content


def test_localhost_is_this_machine(served):
  answer, _ = ask(served, '', host=f'localhost:{served.server_port}')
  assert answer.status == 200


@pytest.mark.parametrize('token', ['', 'a', '..', '%2e%2e', 'é'.encode().hex()])
def test_nothing_is_served_without_the_token(served, token):
  for path in ('', 'slides', 'viewer.js'):
    assert ask(served, path, token=token)[0].status == 404
  assert ask(served, '')[0].status == 200


ELSEWHERE = [
  f'{prefix}{up * 4}{file}'
  for prefix in ('', 'slides/', 'slides/007.a/', 'slides/007.a/tiles/')
  for up in ('../', '..%2f', '%2e%2e/', '%252e%252e%252f', '..%5c', '..//')
  for file in ('secret.txt', 'etc/passwd', 'slides/007.a.tiff')
]


@pytest.mark.parametrize(
  'path',
  [
    *ELSEWHERE,
    '/etc/passwd',
    '%2fetc%2fpasswd',
    'index.html',
    'server.py',
    'openseadragon/LICENSE.txt',
    'slides/',
    'slides/unknown/',
    'slides/007.a/x',
    'slides/007.a%00/',
    'slides/%ff/',
    'slides/007.A/',
    'slides?x=1',
    'slides/007.a/tiles/0/0_0.png',
    'slides/007.a/tiles/99/0_0.jpg',
    'slides/007.a/tiles/10/3_0.jpg',
    'slides/007.a/tiles/10/-1_0.jpg',
    'slides/007.a/tiles/9999999999/0_0.jpg',
    'slides/007.a/heat/absolute/attention/viridis/10/3_0.png',
    'slides/007.a/heat/absolute/attention/viridis/11/0_0.png',
    'slides/007.a/heat/absolute/attention/__class__/10/0_0.png',
    'slides/007.a/heat/absolute/probability-3/viridis/10/0_0.png',
    'slides/007.a/heat/other/attention/viridis/10/0_0.png',
    'slides/007.a/at/1_x',
    'slides/007.a/at/\u0661_1',
  ],
)
def test_what_is_not_there_is_not_found(served, path):
  path = path.encode('utf-8').decode('latin-1')
  if not path.isascii():
    path = urllib.parse.quote(path, safe='/_')
  answer, content = ask(served, path)
  assert answer.status == 404
  assert b'secret' not in content
  assert b'root:' not in content


@pytest.mark.parametrize('method', ['POST', 'PUT', 'DELETE', 'OPTIONS'])
def test_nothing_can_be_written(served, method):
  assert ask(served, 'slides', method=method)[0].status == 501


def test_every_answer_forbids_what_comes_from_elsewhere(served):
  for path in ('', 'slides', 'unknown'):
    answer, _ = ask(served, path)
    policy = answer.headers['Content-Security-Policy']
    assert "default-src 'none'" in policy
    assert 'unsafe' not in policy
    assert 'http' not in policy
    assert answer.headers['X-Content-Type-Options'] == 'nosniff'
    assert answer.headers['Cross-Origin-Resource-Policy'] == 'same-origin'


def test_a_slide_that_cannot_be_opened_costs_only_itself(served):
  answer, content = ask(served, 'slides/broken/')
  assert answer.status == 500
  assert 'broken' in content.decode()
  assert read(served, 'slides/007.a/')


def test_names_of_any_kind_are_found(served):
  listed = json.loads(read(served, 'slides'))
  assert [slide['id'] for slide in listed] == sorted(NAMES)
  assert {'id': '007.a', 'label': 'lymphoma'} in listed
  name = urllib.parse.quote(NAMES[1], safe='')
  assert json.loads(read(served, f'slides/{name}/'))['id'] == NAMES[1]


def test_a_run_without_slide_files_is_refused(viewed):
  with pytest.raises(MapError, match='--slides_dir'):
    server.Server({}, tile_scores.find(viewed), {})


def test_openseadragon_is_the_published_file():
  folder = importlib.resources.files('experiments.viewer') / 'page'
  library = folder / 'openseadragon' / 'openseadragon.min.js'
  assert hashlib.sha256(library.read_bytes()).hexdigest() == SHA256
  assert b'6.1.1' in library.read_bytes()[:40]
  licence = (library.parent / 'LICENSE.txt').read_text()
  assert 'Redistribution and use in source and binary forms' in licence
