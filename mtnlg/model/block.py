"""The block: one definition for training, scoring, prefill and decoding."""

import flax.linen as nn

from mtnlg.core import prng, schema
from mtnlg.core.collectives import WHOLE, WHOLE_SEQUENCE, ContextShard, TensorShard
from mtnlg.core.prng import Dropout
from mtnlg.model.attention import Attention
from mtnlg.model.attention_core import Places
from mtnlg.model.cache import LayerCache
from mtnlg.model.layers import MLP, Norm


class Block(nn.Module):
    """Pre-LN transformer block (Radford et al. 2019): the whole of it, as for initialisation, or one device's part."""

    model: schema.Model
    shard: TensorShard = WHOLE
    context: ContextShard = WHOLE_SEQUENCE
    recompute_core: bool = False

    @nn.compact
    def __call__(self, x_BLD, places: Places, cache: LayerCache | None = None, dropout: Dropout | None = None):
        """Residual stream [B, L, D], or this device's places of it -> (the same, the updated cache or None)."""
        model = self.model

        def dropped(y_BLD, site):
            return y_BLD if dropout is None else dropout.hidden(y_BLD, site, model.dropout_hidden)

        attention = Attention(model, self.shard, self.context, self.recompute_core, name="attention")
        a_BLD, updated = attention(Norm(model, name="attention_norm")(x_BLD), places, cache, dropout)
        after_attention = x_BLD + dropped(a_BLD, prng.ATTENTION_OUTPUT)
        mlp_input = x_BLD if model.parallel_residual else after_attention
        m_BLD = MLP(model, self.shard, name="mlp")(Norm(model, name="mlp_norm")(mlp_input))
        return after_attention + dropped(m_BLD, prng.MLP_OUTPUT), updated
