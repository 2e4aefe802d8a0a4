"""Names what is done to tiles at random, and how often.

`data.augment_ops.apply` does it; nothing here needs TensorFlow.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Policy:
  """Random changes of a tile, in the order in which they are made.

  All fields but `dihedral` begin with the probability of the change; changes
  are drawn independently. S is the side of a tile.

  Attributes:
    dihedral: probability that one of the 8 symmetries of a square, evenly
      drawn and with the identity among them, is taken; pixels are only moved.
    scale: probability, a: enlarged by a factor drawn evenly from 1 - a to
      1 + a.
    rotation: probability, degrees: turned by an angle drawn evenly from -a to
      a.
    shift: probability, part of S: moved in x and y by whole pixels drawn evenly
      from -a S to a S.
    elastic: probability, part of S: the points of a 5 x 5 grid are moved by
      normal draws of this standard deviation, the others smoothly with them.
    blur: probability, part of S: Gaussian blur with a standard deviation drawn
      evenly from 0 to a S.
    noise: probability, a: independent normal noise on every value, with a
      standard deviation drawn evenly from 0 to a; the range of values is 1.
    brightness_contrast: probability, a: (1 + c) x + b with b and c drawn evenly
      from -a to a.
    colour: probability, a, degrees: about the grey of each pixel, saturation
      times 1 - a to 1 + a and hue turned by up to this angle. RGB only.

  Scale, rotation, shift and elastic deformation are one bilinear
  interpolation; beyond its border a tile goes on as its mirror image. After
  `blur`, values are kept in 0..1.
  """

  dihedral: float = 0.0
  scale: tuple[float, float] = (0.0, 0.0)
  rotation: tuple[float, float] = (0.0, 0.0)
  shift: tuple[float, float] = (0.0, 0.0)
  elastic: tuple[float, float] = (0.0, 0.0)
  blur: tuple[float, float] = (0.0, 0.0)
  noise: tuple[float, float] = (0.0, 0.0)
  brightness_contrast: tuple[float, float] = (0.0, 0.0)
  colour: tuple[float, float, float] = (0.0, 0.0, 0.0)


NONE = Policy()
PRESETS = {
  'none': NONE,
  # Tang et al. 2022 train on all eight views of each patch.
  'tang': Policy(dihedral=1.0),
  # Lee et al. 2024: scale +-50 % (the library does so half of the time), half
  # of the time a symmetry of the square (theirs: a flip or a transposition),
  # elastic or +-25 degrees (0.8), smoothing or noise (0.2; one of four is
  # noise), brightness and contrast +-20 % (0.5).
  'lee': Policy(
    dihedral=0.5,
    scale=(0.5, 0.5),
    rotation=(0.4, 25.0),
    elastic=(0.4, 0.03),
    blur=(0.15, 1.4 / 224),
    noise=(0.05, 0.028),
    brightness_contrast=(0.5, 0.2),
  ),
  # Ansari: flips, 0 to 180 degrees, shifts of 10 of 224 px. A flip and any
  # angle are as likely as there, since each symmetry of the square is itself a
  # turn by a right angle, flipped or not.
  'ansari': Policy(dihedral=1.0, rotation=(1.0, 180.0), shift=(1.0, 10 / 224)),
  # The symmetries, and sections as other laboratories stain them. Ours.
  'stain': Policy(
    dihedral=1.0, brightness_contrast=(0.5, 0.15), colour=(0.8, 0.2, 10.0)
  ),
}
