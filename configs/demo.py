"""A small GPT trained on the library of the Python that runs it.

COMMAND: make demo
Hardware: 2 CPU cores, under 4 minutes. Result: held-out bits per byte below a byte 3-gram's; see the README for what was measured.
"""

from mtnlg.core import config as configs


def get_config():
    config = configs.default()
    config.name = "demo"
    config.model.num_layers = 4
    config.model.d_model = 192
    config.model.num_heads = 4
    config.model.vocab_size = 4096
    config.model.seq_len = 256
    config.data.heldout_fraction = 0.02
    config.data.tokenizer_train_bytes = 4_000_000
    config.train.batch_size = 8
    config.train.num_steps = 300
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_tokens = 60_000
    config.optimizer.schedule = "wsd"
    config.optimizer.wsd_decay_fraction = 0.4
    config.optimizer.min_lr_ratio = 0.0
    config.train.unroll_layers = True
    config.checkpoint.every_steps = 100
    config.sample.prompts = ("def read_", "import os\n\nclass ", '    """Return ')
    config.sample.max_new_tokens = 80
    config.log.norms_every_steps = 50
    return config
