"""The embedded world: small rendered scenes whose truth is known, their language, and three tiny LLaVA checkpoints.

To the method this world is only a source of images, three checkpoints and a truth that evaluation may ask. No stage
knows about it.
"""
