"""Puts trained models into one file that runs without the training's code.

  python -m experiments.export --run=results/kmil_origin_s2023 --out=model.kmil
  python -m experiments.predict --model=model.kmil --features_dir=...

The file holds the models of all folds, or of --fold, as a StableHLO program for
CPUs, CUDA GPUs and TPUs, their weights, and card.json and README.md, which say
what they are, which features they take and how good they are. It runs with JAX
alone, python model.kmil bag.npy; see README.md. With --with_encoder one file
goes from slides to predictions:

  python -m experiments.predict --model=model.kmil --slides_dir=...
"""

import dataclasses
import pathlib

import safetensors.numpy

from data.files import replacing
from experiments.prediction import models
from experiments.prediction.about import describe, readme
from experiments.prediction.models import Folds
from experiments.run import start
from experiments.run.options import free
from experiments.run.start import Cache
from kmil_jax import checksums, export


@dataclasses.dataclass(frozen=True)
class Output:
  """The file."""

  out: pathlib.Path = free(None, 'File to write.')
  license: str = free(
    'unknown',
    'Licence of the models for README.md, as Hugging Face abbreviates it, like'
    ' cc-by-nc-4.0.',
  )
  torch_dir: pathlib.Path | None = free(
    None,
    'Also write PyTorch state dicts here, by the names of the published code:'
    ' fold_<i>_<network>.safetensors.',
  )


@dataclasses.dataclass(frozen=True)
class Encoder:
  """The encoder."""

  with_encoder: bool = free(
    False,
    "Put the encoder's weights into the file, for predict --slides_dir.",
  )
  weights: str | None = free(
    None,
    "File of these weights, or 'imagenet', if they are neither those of the"
    ' default encoder nor beside the features of the training.',
    only={'with_encoder': True},
  )


def run(
  folds: Folds, output: Output, encoder: Encoder, cache: Cache
) -> start.Next:
  """Writes the file."""
  folder = folds.folder()
  card, trained = models.read(folder, folds.fold)
  about = describe(folder, card, output.license)
  others = {}
  if encoder.with_encoder:
    # It imports networks, which an export without an encoder does without.
    from experiments.prediction import encode

    path = encode.weights_file(card, encoder.weights, folder, cache.cache_dir)
    others[export.ENCODER + path.name] = path.read_bytes()
    about['encoder_weights'] = {
      'file': path.name,
      'sha256': checksums.of_file(path),
    }
  others[export.README] = readme(about).encode()
  states = trained.to_torch(card.folds) if output.torch_dir else {}
  programs = trained.design.lower(trained.weights)
  archive = export.Archive(about, trained.weights, programs, others)
  content = export.pack(archive)
  with replacing(output.out) as part:
    part.write_bytes(content)
  for name, state in states.items():
    with replacing(output.torch_dir / f'{name}.safetensors') as part:
      part.write_bytes(safetensors.numpy.save(state))
  sizes = archive.lengths()
  print(
    f'{card.summary()}; bags of {f"up to {sizes[-1]}" if sizes else "any"}'
    f' instances\nwrote {output.out}, {len(content) / 2**20:.1f} MiB'
  )
  kind = 'slides' if encoder.with_encoder else 'features'
  of = {'model': output.out, f'{kind}_dir': f'new_{kind}'}
  return 'predict', {'run': None, 'fold': None, **of}


main = start.script(run)


if __name__ == '__main__':
  main()
