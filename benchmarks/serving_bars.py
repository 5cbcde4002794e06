"""What the project's owner asks of serving: each bar's name, where its value stands, its goal."""

from __future__ import annotations

from typing import Any

# a bar: where its value stands in what is told, how it is to compare, and with what
BARS = (
    ("burst against static batches of 8, std", "burst/against_static_8/std_s", "<=", 0.35),
    ("burst against static batches of 8, mean", "burst/against_static_8/mean_s", "<=", 0.5),
    ("burst against static batches of 8, p99", "burst/against_static_8/p99_s", "<=", 0.4),
    ("burst against static batches of 8, tokens/s", "burst/against_static_8/tokens_per_s", ">=", 2.6),
    ("burst against the same kernels in batches of 8, std", "burst/against_gang_8/std_s", "<=", 0.55),
    ("the same, tokens/s", "burst/against_gang_8/tokens_per_s", ">=", 1.8),
    ("Poisson at 0.8 of static batches of 8, std", "poisson/against_static_8/std_s", "<=", 0.43),
    ("the same, mean", "poisson/against_static_8/mean_s", "<=", 0.3),
    ("the same, p99", "poisson/against_static_8/p99_s", "<=", 0.4),
    ("closed loop against static batches of 8, mean", "closed/against_static_8/mean_s", "<=", 0.55),
    ("the same, p99", "closed/against_static_8/p99_s", "<=", 0.55),
    ("transformers' continuous batching, tokens/s",
     "burst/against_transformers_continuous/tokens_per_s", ">=", 2.5),
    ("`transformers serve`, words, tokens/s", "text_against_transformers_serve/ratio", ">=", 2.5),
    ("`transformers serve`, pictures, tokens/s", "pictures_against_transformers_serve/ratio", ">=", 2.5),
    ("OpenVINO GenAI's, float32, tokens/s", "burst/against_openvino/tokens_per_s", ">=", 1.0),
    ("a follow-up's first token, demo model of 9 M", "follow_up/demo/ratio", "<=", 0.05),
    ("a follow-up's first token, base size of 30 M", "follow_up/base/ratio", "<=", 0.05),
    ("one alone against bare generate", "alone/ratio", "<=", 1.05),
    ("burst against its matrix products", "floor/ratio", "<=", 1.6),
)  # fmt: skip


def bars(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar that was measured: name, value, goal, and whether it is met."""
    listed = []
    for name, path, compared, goal in BARS:
        value: Any = told
        for key in path.split("/"):
            value = value.get(key, {})
        if value != {}:
            met = value <= goal if compared == "<=" else value >= goal
            listed.append({"bar": name, "value": value, "goal": f"{compared} {goal}", "met": met})
    return listed


def show_bars(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Print the bars that were measured, a line each."""
    listed = bars(told)
    for bar in listed:
        met = "met" if bar["met"] else "NOT MET"
        print(f"{bar['bar']:<52} {bar['value']:6.3f}  {bar['goal']:<8} {met}")
    return listed
