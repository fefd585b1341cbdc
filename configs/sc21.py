"""The ten sizes of the weak-scaling table of Narayanan et al. 2021 (SC21, arXiv 2104.04473, table 1): 1.7B to 1T parameters.

COMMAND: python -m mtnlg config --config=configs/sc21.py:SIZE with SIZE one of 1.7b 3.6b 7.5b 18b 39b 76b 145b 310b 530b 1t
Hardware: published for 32 to 3072 A100-80GB. The table fixes architecture, batch and mesh; it says nothing of the optimizer, so
the learning rate follows the nearest size of the GPT-3 family (Brown et al. 2020, table 2.1).
"""

from mtnlg.core import config as configs
from mtnlg.core.errors import ConfigError

# layers, width, heads, tensor, pipe, data, batch, microbatch, peak learning rate
SIZES = {
    "1.7b": (24, 2304, 24, 1, 1, 32, 512, 16, 2.0e-4),
    "3.6b": (30, 3072, 32, 2, 1, 32, 512, 16, 1.6e-4),
    "7.5b": (36, 4096, 32, 4, 1, 32, 512, 16, 1.2e-4),
    "18b": (40, 6144, 48, 8, 1, 32, 1024, 8, 1.0e-4),
    "39b": (48, 8192, 64, 8, 2, 32, 1536, 4, 1.0e-4),
    "76b": (60, 10240, 80, 8, 4, 32, 1792, 2, 0.6e-4),
    "145b": (80, 12288, 96, 8, 8, 24, 2304, 2, 0.6e-4),
    "310b": (96, 16384, 128, 8, 16, 15, 2160, 1, 0.6e-4),
    "530b": (105, 20480, 128, 8, 35, 9, 2520, 1, 0.5e-4),
    "1t": (128, 25600, 160, 8, 64, 6, 3072, 1, 0.5e-4),
}


def get_config(size="1.7b"):
    if size not in SIZES:
        raise ConfigError(f"the table has no size {size!r}", "configs/sc21.py", f"one of {', '.join(SIZES)}")
    layers, width, heads, tensor, pipe, data, batch, microbatch, rate = SIZES[size]
    config = configs.default()
    config.name = f"sc21_{size}"
    config.model.num_layers = layers
    config.model.d_model = width
    config.model.num_heads = heads
    config.model.vocab_size = 51200
    config.model.vocab_multiple = 1024
    config.model.seq_len = 2048
    config.model.init_std = (1 / (3 * width)) ** 0.5
    config.train.batch_size = batch
    config.train.microbatch_size = microbatch
    config.train.num_steps = 300_000_000_000 // (batch * 2048)
    config.train.compute_dtype = "bfloat16"
    config.train.recompute = "full"
    config.optimizer.learning_rate = rate
    config.optimizer.warmup_tokens = 375_000_000
    config.optimizer.decay_tokens = 260_000_000_000
    config.mesh.tensor = tensor
    config.mesh.pipe = pipe
    config.mesh.data = data
    config.mesh.zero = 0  # the paper has plain data parallelism
    return config
