"""Megatron-Turing NLG 530B with its whole recipe (Smith et al. 2022, arXiv 2201.11990).

COMMAND: python -m mtnlg train --config=configs/mtnlg_530b.py --workdir=DIR, on 2240 GPUs;
python -m mtnlg plan --config=configs/mtnlg_530b.py --draw=530b.svg without one. The mesh is the paper's.
Hardware: published for 2240 A100-80GB: 60.1 s a step of 1920 sequences. Published validation loss: 3.15 after 1 B tokens,
2.31 after 12 B, 1.85 after 270 B. The paper states no dropout; 0.1 is Megatron-LM's default.
"""

from mtnlg.core import config as configs

# Table 2 of the paper, with the weights of the released blend.
BLEND = {
    "Books3": 0.14336,
    "OpenWebText2": 0.19336,
    "StackExchange": 0.05689,
    "PubMedAbstracts": 0.02897,
    "Wikipedia": 0.04771,
    "Gutenberg": 0.00873,
    "BookCorpus2": 0.01007,
    "NIHExPorter": 0.00208,
    "ArXiv": 0.01359,
    "GitHub": 0.01588,
    "Pile-CC": 0.09446,
    "CC-2020-50": 0.13017,
    "CC-2021-04": 0.15652,
    "RealNews": 0.08962,
    "CC-Stories": 0.00859,
}


def get_config():
    config = configs.default()
    config.name = "mtnlg_530b"
    config.model.num_layers = 105
    config.model.d_model = 20480
    config.model.num_heads = 128
    config.model.vocab_size = 51200
    config.model.vocab_multiple = 1024
    config.model.seq_len = 2048
    config.model.dropout_hidden = 0.1
    config.model.dropout_attention = 0.1
    config.model.init_std = 4.0e-3
    config.data.source = tuple(f"corpus/{name}.jsonl.zst" for name in BLEND)
    config.data.weights = tuple(BLEND.values())
    config.data.tokenizer = "tokenizers/gpt2"
    config.train.batch_size = 1920
    config.train.microbatch_size = 1
    config.train.ramp_start_size = 32
    config.train.ramp_increment = 32
    config.train.ramp_samples = 5_859_375  # 12 B tokens
    config.train.num_steps = 80_087  # the first step that ends beyond 270 B tokens
    config.train.compute_dtype = "bfloat16"
    config.train.recompute = "full"
    config.optimizer.learning_rate = 5.0e-5
    config.optimizer.min_lr_ratio = 0.1
    config.optimizer.warmup_tokens = 1_000_000_000
    config.optimizer.decay_tokens = 340_000_000_000
    config.optimizer.beta2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.mesh.tensor = 8
    config.mesh.pipe = 35
    config.mesh.data = 8
    return config
