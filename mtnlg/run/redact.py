"""Masks what looks like a secret in a command line, before it is written down."""

import re

MASK = "***"
_WORDS = "api_?key|access_?key|key|token|secret|passwd|password|passphrase|credentials?|auth|authorization|bearer"
_SECRET_NAME = re.compile(rf"(?<![a-z])({_WORDS})(?![a-z])", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"(?<=://)[^/\s@]+(?=@)"  # user:password@ in an address
    r"|\b(?:hf_|sk-|gh[a-z]_|github_pat_|glpat-|xox[a-z]-|AKIA|AIza|eyJ)[\w.-]{8,}"  # Hugging Face, OpenAI, GitHub, GitLab, Slack, AWS, ...
    r"|(?<![\w+/])(?=[A-Za-z+]*\d)(?=[\d+]*[A-Za-z])[A-Za-z0-9+]{32,}={0,2}(?![\w+/])"  # long runs of letters and digits
)


def redact(arguments: list[str]) -> list[str]:
    """The arguments with `***` for the value of any `--...token=`, `--api-key VALUE`, `SECRET=...`, and for values shaped like a key."""
    safe, hide_next = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        names_secret = bool(_SECRET_NAME.search(name))
        if hide_next and not argument.startswith("-"):
            safe.append(MASK)
        elif equals and names_secret:
            safe.append(f"{name}={MASK}")
        else:
            safe.append(_SECRET_VALUE.sub(MASK, argument))
        hide_next = names_secret and not equals and argument.startswith("-")
    return safe
