"""Settings that all programs have."""

from __future__ import annotations

from typing import Final

from machine_operator.config.options import Setting, choice, text

__all__ = ["KUBECONFIG", "LOGGING"]

KUBECONFIG: Final = Setting(
    "kubeconfig",
    text("FILE", "the path of a kubeconfig"),
    None,
    "How to reach the cluster.",
    found="the pod's service account, else the user's kubeconfig",
)

LOGGING: Final = (
    Setting("log_format", choice("text", "json", "logfmt"), "text", "Form of the log's lines."),
    Setting(
        "log_level",
        choice("debug", "info", "warning", "error"),
        "info",
        "The least important lines that are logged.",
    ),
)
