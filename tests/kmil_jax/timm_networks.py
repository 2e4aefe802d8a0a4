"""timm's networks."""

from experiments.benchmarks.torch_side import import_timm

timm = import_timm()
from timm.layers import LayerNorm, SwiGLUPacked  # noqa: E402, F401
from timm.models.eva import Eva  # noqa: E402, F401
from timm.models.vision_transformer import VisionTransformer  # noqa: E402, F401

create_model = timm.create_model
