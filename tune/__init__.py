"""Fine-tuning of large language models in native PyTorch: typed configs, readable recipes."""

__version__ = "0.1.0"
