"""Which backend was fastest, forward and backward, where it was measured; `auto` reads it, a benchmark writes it.

Rows: device kind ("cpu" or torch.cuda.get_device_name), head_dim, and for partial tokens the patches of the longest
group, for the cascade the number of partial tokens. What is not here follows DEFAULTS.
"""

# (device kind, head_dim, patches per group) -> fused | flash_window | flash_varlen | dense
PARTIAL: dict[tuple[str, int, int], str] = {
    ("cpu", 16, 1): "fused",
    ("cpu", 16, 2): "fused",
    ("cpu", 16, 4): "fused",
    ("cpu", 16, 8): "fused",
    ("cpu", 32, 1): "fused",
    ("cpu", 32, 2): "fused",
    ("cpu", 32, 4): "fused",
    ("cpu", 32, 8): "fused",
    ("cpu", 64, 1): "fused",
    ("cpu", 64, 2): "fused",
    ("cpu", 64, 4): "fused",
    ("cpu", 64, 8): "fused",
    ("cpu", 128, 1): "fused",
    ("cpu", 128, 2): "fused",
    ("cpu", 128, 4): "fused",
    ("cpu", 128, 8): "fused",
}

# (device kind, head_dim, partial tokens) -> flash | dense
CASCADE: dict[tuple[str, int, int], str] = {}

# device type -> (backend of the partial tokens, backend of the cascade)
DEFAULTS: dict[str, tuple[str, str]] = {"cpu": ("fused", "dense"), "cuda": ("fused", "dense")}
