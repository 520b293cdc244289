"""nanoreason: the field of reasoning models, from scratch, in one small PyTorch code base."""

__version__ = "0.1.0"
