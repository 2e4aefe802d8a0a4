"""The paper's models in torch, to compare with.

Modules carry the names of the public implementations, so that their state dicts
and those of `kmil_jax.port` are the same. A model takes one bag [N, D]:
`forward` returns logits [C] and attention [N, A], `loss` what it is trained by.
"""
