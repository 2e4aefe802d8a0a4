"""Puts trained models into one file that runs without the training's code.

  python -m experiments.export --run=results/kmil_origin_s2023 --out=model.kmil
  python -m experiments.predict --model=model.kmil --features_dir=...

The file holds the models of all folds, or of --fold, as a StableHLO program for
CPUs, CUDA GPUs and TPUs, their weights, and a card.json that says what they are
and which features they take; see `kmil_jax.export`.
"""

import dataclasses
import pathlib

from data.files import replacing
from experiments.prediction import models
from experiments.prediction.models import Folds
from experiments.run import start
from experiments.run.options import free
from experiments.run.start import Cache
from kmil_jax import export


@dataclasses.dataclass(frozen=True)
class Output:
  """The file."""

  out: pathlib.Path = free(None, 'File to write.')


def run(folds: Folds, output: Output, cache: Cache) -> None:
  """Writes the file."""
  del cache  # Begun by `start`.
  card, trained = models.read(folds.folder(), folds.fold)
  programs = trained.design.lower(trained.weights)
  archive = export.Archive(card.to_json(), trained.weights, programs)
  content = export.pack(archive)
  with replacing(output.out) as part:
    part.write_bytes(content)
  sizes = archive.lengths()
  print(
    f'{card.summary()}; bags of {f"up to {sizes[-1]}" if sizes else "any"}'
    f' instances\nwrote {output.out}, {len(content) / 2**20:.1f} MiB'
  )


main = start.script(run)


if __name__ == '__main__':
  main()
