"""The networks of Ansari's Table 3: recipes, training, where they look."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from experiments import patch_flags
from experiments.ct_nodes_parts import Parts
from experiments.ct_nodes_table import Said
from experiments.patches import training
from experiments.patches.training import Trained
from experiments.run import results
from kmil_jax import saliency
from kmil_jax.types import PatchRecipe

_CAM_BATCH = 16
# The paper names Adam, batches of 4, 30 epochs and a patience of 30 on the
# validation loss, but no learning rate: those here are ours.
_CUSTOM = PatchRecipe(
  learning_rate=1e-3,
  epochs=30,
  batch=4,
  binary=True,
  schedule='constant',
  select='loss',
  patience=30,
  input_size=224,
  mean=(0.0,),
  std=(1.0,),
)


@dataclasses.dataclass(frozen=True)
class Network:
  """A row of Table 3."""

  model: str
  channels: int
  title: str
  recipe: PatchRecipe
  paper: tuple[float, float, float]  # train acc, test acc, test AUROC
  phantom_epochs: int | None = None  # instead of the recipe's, to be quick


NETWORKS = {
  'custom': Network(
    'node_cnn', 1, 'custom (no augmentation)', _CUSTOM, (0.99, 0.69, 0.42)
  ),
  'custom_aug': Network(
    'node_cnn',
    1,
    'custom (augmentation)',
    dataclasses.replace(_CUSTOM, augment='ansari'),
    (0.99, 0.58, 0.63),
  ),
  'resnet50': Network(
    'resnet50',
    3,
    'ResNet-50 (no augm.)',
    dataclasses.replace(
      _CUSTOM,
      learning_rate=1e-4,
      mean=PatchRecipe.mean,
      std=PatchRecipe.std,
    ),
    (0.99, 0.61, 0.53),
    phantom_epochs=4,
  ),
}
_PHANTOM_SIZE = 64  # Pixels: above the 22 mm box at 0.79 mm already.


def recipe(name: str, is_phantom: bool) -> PatchRecipe:
  """Returns a network's recipe, changed as the flags ask.

  On the phantom, what the flags leave open is reduced; see `reductions`.
  """
  network = NETWORKS[name]
  asked = network.recipe
  if is_phantom:
    asked = dataclasses.replace(
      asked,
      input_size=_PHANTOM_SIZE,
      epochs=network.phantom_epochs or asked.epochs,
    )
  return patch_flags.resolve(asked)


def reductions(names: list[str]) -> list[str]:
  """Says what `recipe` reduces on the phantom for these networks."""
  found = []
  if patch_flags.INPUT_SIZE.value is None:
    found.append(
      f'slices of {_PHANTOM_SIZE} px instead of {_CUSTOM.input_size}'
      ' (--input_size)'
    )
  if patch_flags.EPOCHS.value is None:
    found += [
      f'{network.phantom_epochs} epochs of {network.title} instead of'
      f' {network.recipe.epochs} (--epochs)'
      for network in map(NETWORKS.get, names)
      if network.phantom_epochs
    ]
  return found


def train(
  folder: pathlib.Path,
  name: str,
  parts: Parts,
  recipe: PatchRecipe,
  *,
  seed: int,
) -> tuple[Said, Trained]:
  """Trains a network, or loads it, and lets it classify every slice.

  Args:
    folder: of this network.
    name: in `NETWORKS`.
    parts: the slices.
    recipe: of the training.
    seed: of parameters and order.

  Raises:
    what `training.train` raises.
  """
  network = NETWORKS[name]
  is_pretrained = network.model == 'resnet50'
  trained = training.train(
    results.Folder(folder.parent),
    folder.name,
    model=network.model,
    train=parts.of('train', network.channels),
    val=parts.of('val', network.channels),
    recipe=recipe,
    options=training.Training(
      weights=patch_flags.WEIGHTS.value if is_pretrained else None,
      freeze=patch_flags.FREEZE.value if is_pretrained else '',
      precision=patch_flags.PRECISION.value,
      tensorboard=patch_flags.TENSORBOARD.value,
    ),
    seed=seed,
    title=network.title,
  )
  prob, _ = trained.predict(parts.every(network.channels))
  said = Said(
    name,
    network.title,
    prob,
    trained.epoch,
    len(trained.history),
    network.paper,
  )
  return said, trained


def cams(
  name: str, said: Said, trained: Trained, parts: Parts, rows: np.ndarray
) -> np.ndarray:
  """Grad-CAM of slices for the class the network says, [k, s, s] in [0, 1]."""
  from data import pipeline  # TensorFlow takes seconds to import.

  look = jax.jit(functools.partial(saliency.grad_cam, trained.model))
  found = []
  target = said.prob[rows].argmax(1).astype(np.int32)
  for batch in pipeline.tile_batches(
    parts.every(NETWORKS[name].channels).take(rows),
    batch=_CAM_BATCH,
    mean=trained.recipe.mean,
    std=trained.recipe.std,
    input_size=trained.recipe.input_size,
  ):
    index = batch['index'].clip(0)
    cam = look(trained.variables, batch['image'], target[index])
    found.append(np.asarray(cam)[batch['weight'] > 0])
  return np.concatenate(found)


def share_inside(cam: np.ndarray, inside: np.ndarray) -> float | None:
  """Mean share of a slice's Grad-CAM that lies in the node.

  Args:
    cam: [k, s, s].
    inside: the nodes, bool [k, S, S].

  Returns:
    The mean over maps that are not 0 throughout; None if all are.
  """
  place = (np.arange(cam.shape[1]) + 0.5) * inside.shape[1] / cam.shape[1]
  place = place.astype(int)
  where = inside[:, place][:, :, place]
  total = cam.sum((1, 2))
  some = total > 0
  if not some.any():
    return None
  return float(((cam * where).sum((1, 2))[some] / total[some]).mean())
