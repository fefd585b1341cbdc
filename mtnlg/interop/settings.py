"""Reading and writing config.json: keys with their defaults, and what cannot be honoured, gathered."""

from typing import Any

from mtnlg.core import schema

GELU = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu": "gelu_exact", "relu": "relu"}
WRITTEN_GELU = {"gelu": "gelu_new", "gelu_exact": "gelu", "relu": "relu"}


class Settings:
    """A config.json. `problems` gathers a line for each key that is missing, of the wrong kind, or that cannot be honoured."""

    def __init__(self, config: dict[str, Any]):
        self.config, self.problems = config, []
        if config.get("quantization_config"):
            self.refuse("quantization_config", "quantised weights")

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self._get(key, default)
        if type(value) is not int or value < 1:
            self.problems.append(f"{key} is {'missing' if value is None else repr(value)}: a whole number of at least 1 is wanted")
            return 1
        return value

    def maybe_count(self, key: str) -> int | None:
        """The same, or nothing."""
        return None if self.config.get(key) is None else self.count(key)

    def number(self, key: str, default: float) -> float:
        """A number above 0."""
        return self._number(key, self._get(key, default))

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            self.problems.append(f"{key} is {value!r}: true or false is wanted")
        return bool(value)

    def word(self, key: str, default: str, choices: dict[str, str]) -> str:
        """Our word for one of theirs."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            self.refuse(key, f"only {', '.join(choices)} can be computed")
            return next(iter(choices.values()))
        return choices[value]

    def require(self, key: str, value, why: str) -> None:
        """Refuses every other value; a key that is not there has this one."""
        if self.config.get(key) is not None and self.config[key] != value:
            self.refuse(key, why)

    def refuse(self, key: str, why: str) -> None:
        self.problems.append(f"{key}={self.config.get(key)!r}: {why}")

    def rope(self, theta_key: str = "rope_theta", fraction_key: str = "partial_rotary_factor", fraction: float = 1.0) -> dict[str, Any]:
        """Rotary positions as keys of schema.Model: those of `rope_parameters` (transformers 5), or of the older keys."""
        given = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            self.refuse("rope_parameters", "an object is wanted")
            given = {}
        theta = given.get("rope_theta", self._get(theta_key, 10000.0))
        share = given.get("partial_rotary_factor", self._get(fraction_key, fraction))
        found = {"position": "rope", "rope_theta": self._number(theta_key, theta), "rope_fraction": self._number(fraction_key, share)}
        kind = given.get("rope_type", given.get("type")) or "default"
        if kind == "default":
            return found
        if kind not in ("linear", "llama3"):
            self.problems.append(f"rope_scaling of type {kind!r}: only default, linear and llama3 can be computed")
            return found
        found |= {"rope_scaling": kind, "rope_scaling_factor": self._number("rope_scaling.factor", given.get("factor"))}
        if kind == "llama3":
            for ours, theirs in (("rope_low_freq_factor", "low_freq_factor"), ("rope_high_freq_factor", "high_freq_factor")):
                found[ours] = self._number(f"rope_scaling.{theirs}", given.get(theirs))
            length = self._number("rope_scaling.original_max_position_embeddings", given.get("original_max_position_embeddings"))
            found["rope_original_seq_len"] = int(length)
        return found

    def window(self, num_layers: int) -> int | None:
        """Qwen's sliding window, which every layer or none must have."""
        kinds = self.config.get("layer_types")
        if kinds is not None:
            if kinds and set(kinds) == {"full_attention"}:
                return None
            if kinds and set(kinds) == {"sliding_attention"}:
                return self.count("sliding_window")
            self.refuse("layer_types", "every layer has the same window, or none has")
            return None
        if not self.flag("use_sliding_window", False) or self.config.get("sliding_window", 4096) is None:
            return None
        first = self._get("max_window_layers", 28)
        if type(first) is not int or 0 < first < num_layers:
            self.refuse("max_window_layers", "every layer has the same window, or none has")
        return self.count("sliding_window", 4096) if first == 0 else None

    def _get(self, key: str, default):
        value = self.config.get(key)
        return default if value is None else value

    def _number(self, key: str, value) -> float:
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            self.problems.append(f"{key} is {'missing' if value is None else repr(value)}: a number above 0 is wanted")
            return 1.0
        return float(value)


def written_rope(model: schema.Model) -> dict[str, Any]:
    """The keys that transformers 4 and 5, and vLLM, read."""
    scaling = None
    if model.rope_scaling != "none":
        scaling = {"rope_type": model.rope_scaling, "factor": model.rope_scaling_factor}
    if model.rope_scaling == "llama3":
        scaling |= {"low_freq_factor": model.rope_low_freq_factor, "high_freq_factor": model.rope_high_freq_factor}
        scaling |= {"original_max_position_embeddings": model.rope_original_seq_len}
    return {"rope_theta": model.rope_theta, "rope_scaling": scaling}
