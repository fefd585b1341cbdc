"""GPT-2 small, 124,439,808 parameters, with the recipe of its open reproductions (AdamW 6e-4, half a million tokens a step).

COMMAND: python -m mtnlg train --config=configs/gpt2_124m.py --workdir=DIR --config.data.source=TEXT --config.data.tokenizer=GPT2_FOLDER
Hardware: one accelerator of 40 GB or more. Published, on FineWeb with the GPT-2 tokenizer: 3.27 nats per token after
10.26 B tokens (llm.c). Not measured here.
"""

from mtnlg.core import config as configs


def get_config():
    config = configs.default()
    config.name = "gpt2_124m"
    config.model.num_layers = 12
    config.model.d_model = 768
    config.model.num_heads = 12
    config.model.vocab_size = 50257
    config.model.seq_len = 1024
    config.train.batch_size = 512
    config.train.microbatch_size = 16
    config.train.num_steps = 19560
    config.train.compute_dtype = "bfloat16"
    config.train.recompute = "selective"
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_tokens = 700 * 512 * 1024
    config.optimizer.min_lr_ratio = 0.0
    config.eval.every_steps = 250
    config.eval.max_tokens = 10_485_760
    return config
