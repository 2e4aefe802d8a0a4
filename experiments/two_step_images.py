"""Opens the node images of a two-step run: the user's, or the phantom's."""

import hashlib
import pathlib

from data import node_images
from data.node_images import NodeImages
from data.phantom import nodes
from experiments.code_hash import code_hash
from experiments.run import progress
from kmil_jax import parallel

_PHANTOM_CODE = ('data/phantom/*.py',)
_PATIENCE = 0.5  # Seconds before a bar shows: none where all is there.


def phantom(cache_dir: str) -> NodeImages:
  """Returns the phantom's images; renders them where they are not yet.

  Args:
    cache_dir: every version of the code that draws has a folder of its own.
  """
  root = pathlib.Path(cache_dir).expanduser()
  root = root / f'node_images_{code_hash(*_PHANTOM_CODE)}'
  if parallel.is_first() and not (root / 'images.csv').exists():
    print(f'rendering phantom node images in {root}', flush=True)
    with progress.bar(unit='image', desc='phantom', delay=_PATIENCE) as bar:

      def show(done, total):
        bar.total = total
        bar.update(done - bar.n)

      nodes.make(root, progress=show)
  parallel.wait_for_all('node images')
  return node_images.load(root / 'images', root / 'masks', root / 'images.csv')


def fingerprint(images: NodeImages) -> dict[str, str]:
  """Returns a hash of all images, masks, patients and parts."""
  digest = hashlib.sha256()
  for row in range(len(images)):
    known = images.id, images.patient, images.test, images.positive
    digest.update('\0'.join(str(column[row]) for column in known).encode())
    for path in (images.image_paths[row], images.mask_paths[row]):
      if path is not None:
        with path.open('rb') as f:
          digest.update(hashlib.file_digest(f, 'sha256').digest())
  return {'images_sha256': digest.hexdigest()}
