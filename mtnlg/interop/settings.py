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
        if config.get("is_causal", True) is not True:
            self.refuse("is_causal", "a token never sees what is behind it")

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

    def rate(self, key: str, default: float) -> float:
        """Of dropout, at least 0 and below 1."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            self.refuse(key, "a number of at least 0 and below 1 is wanted")
            return 0.0
        return float(value)

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
        named = [key for key in ("rope_scaling", "rope_parameters") if self.config.get(key)]
        given = self.config[named[0]] if named else {}
        if len(named) == 2 and given != self.config["rope_parameters"]:
            self.refuse("rope_scaling", "rope_parameters says something else")
        if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
            self.refuse(named[0], "an object is wanted, one for all layers")
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
            key = "original_max_position_embeddings"
            found["rope_original_seq_len"] = int(self._number(f"rope_scaling.{key}", given.get(key)))
            if self.config.get(key, given.get(key)) != given.get(key):
                self.refuse(key, "rope_scaling says something else")
        return found

    def window(self, num_layers: int) -> int | None:
        """Qwen's sliding window, which every layer or none must have."""
        there = self.flag("use_sliding_window", False) and self.config.get("sliding_window", 4096) is not None
        kinds = self.config.get("layer_types")
        if kinds is not None:
            if not isinstance(kinds, list) or len(kinds) != num_layers or set(kinds) not in ({"full_attention"}, {"sliding_attention"}):
                self.refuse("layer_types", "every layer has the same window, or none has")
            elif kinds[0] == "sliding_attention" and not there:
                self.refuse("layer_types", "use_sliding_window and sliding_window say that there is no window")
            elif kinds[0] == "sliding_attention":
                return self.count("sliding_window", 4096)
            return None
        if not there:
            return None
        first = self._get("max_window_layers", 28)
        if type(first) is not int or 0 < first < num_layers:
            self.refuse("max_window_layers", "every layer has the same window, or none has")
            return None
        return self.count("sliding_window", 4096) if first <= 0 else None

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
