"""pargo_ds: train, export and evaluate ParGo vision-language models with DeepSpeed ZeRO-3."""

__version__ = "0.1.0"
