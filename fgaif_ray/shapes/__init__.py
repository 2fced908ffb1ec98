"""The embedded world: small rendered scenes whose truth is known, their language, and three tiny LLaVA checkpoints.

The world is only an image source, three checkpoints and a truth that evaluation may ask; no stage of the method knows
of it.
"""
