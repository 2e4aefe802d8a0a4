"""Predicts slides one after the other and goes on where it was stopped."""

import pathlib

from experiments.prediction import outputs
from experiments.prediction.bags import Bags, Failure
from experiments.prediction.predictor import Predictor
from experiments.run import progress


def predict(
  bags: Bags, models: Predictor, folder: pathlib.Path
) -> list[Failure]:
  """Writes the files of every slide that has none of these models.

  A slide is done when its files are there, and they are atomic: a loop that was
  killed goes on with the slide it was at. Files of other models or other
  features of a slide are replaced.

  Args:
    bags: slides.
    models: that predict them.
    folder: of the predictions; see `outputs.write`.

  Returns:
    The slides that failed; nothing is written of them.
  """
  failures, done = [], 0
  with progress.bar(
    total=len(bags.ids), unit='slide', desc='predicted'
  ) as shown:
    for slide in bags.ids:
      try:
        digest = bags.source.digest(slide)
        fresh = not outputs.is_done(folder, models.card, slide, digest)
        if fresh:
          bag = bags.source.read(slide)
          said = models(bag.features)
      except Exception as error:  # Whatever it is, the other slides go on.
        name = type(error).__name__
        failures.append(Failure(slide, f'{name}: {error}'))
      else:
        if fresh:
          # A full disk is no fault of the slide.
          outputs.write(folder, models.card, slide, bag, digest, said)
        done += not fresh
      shown.update()
  if done:
    print(f'done before: {done} of {len(bags.ids)} slides')
  return failures
