"""Fake keys of every kind, put together at run time: this repository holds nothing that looks like one."""

from __future__ import annotations

import base64

LETTERS = "aB3" * 40


def _b64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


HUGGING_FACE = "hf_" + LETTERS[:34]
WANDB = "0f1e2d3c4b" * 4

# By name; each is found wherever it stands, whatever is written beside it.
KEYS = {
    "hugging face": HUGGING_FACE,
    "wandb": WANDB,
    "wandb v1": "wandb_v1_" + LETTERS[:40],
    "github": "ghp_" + LETTERS[:36],
    "github fine-grained": "github_pat_" + LETTERS[:60],
    "gitlab": "glpat-" + LETTERS[:20],
    "openai": "sk-" + "proj-" + LETTERS[:48],
    "anthropic": "sk-" + "ant-api03-" + LETTERS[:90],
    "aws id": "AKIA" + "Q7" * 8,
    "google": "AIza" + LETTERS[:35],
    "slack": "xox" + "b-123456789012-" + LETTERS[:24],
    "slack webhook": "https://hooks.slack" + ".com/services/T0000AAAA/B0000BBBB/" + LETTERS[:24],
    "jwt": ".".join([_b64('{"alg":"HS256","typ":"JWT"}'), _b64('{"sub":"1234567890"}'), LETTERS[:43]]),
    "basic": "Basic " + base64.b64encode(b"alice:hunter2secret").decode(),
    "bearer": "Bearer " + LETTERS[:40],
    "azure storage": "AccountKey=" + LETTERS[:86] + "==",
    "stripe": "sk_" + "live_" + LETTERS[:24],
    "stripe test": "sk_" + "test_" + LETTERS[:24],
    "private key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "rsa key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "netrc": "machine api.wandb.ai " + "login user password " + LETTERS[:12],
    "address": "https://" + "ann:" + "pass@proxy.lab:3128",
    "npm": "npm_" + LETTERS[:36],
    "pypi": "pypi-" + "AgEIcHlwaS5vcmc" + LETTERS[:75],
    "telegram": "1234567890" + ":" + "AA" + LETTERS[:33],
    "discord": "M" + LETTERS[:23] + "." + LETTERS[:6] + "." + LETTERS[:27],
    "sendgrid": "SG." + LETTERS[:22] + "." + LETTERS[:43],
    "twilio": "SK" + "0123456789abcdef" * 2,
}
# Found by the name before it, in files.
NAMED = {
    "password": "password = '" + "tr0ub4dor" + "'",
    "short password": 'PASSWORD = "' + "abc" + '"',
    "aws secret": "aws_secret_access_key = " + LETTERS[:40],
    "api key": "api_key: '" + LETTERS[:24] + "'",
    "variable": "export MY_SECRET=" + "hunter2x",
    "wandb by name": "wandb_key: " + WANDB,
    "azure by name": "AZURE_OPENAI_API_KEY=" + "0123456789abcdef" * 2,
    "lower case": "mysql --" + "password=" + "hunter22",
    "netrc line": "  password " + LETTERS[:12],
}
# What looks like one and is none.
INNOCENT = (
    "git_revision: " + "147518f3ef524490e3767ba515169b957f6d07ce",
    '  "commit": "' + "147518f3ef524490e3767ba515169b957f6d07ce" + '+changes",',
    "| Code revision | " + " | ".join(["147518f3ef524490e3767ba515169b957f6d07ce"] * 3) + " |",
    "sha256: " + "0f1e2d3c" * 8,
    "snapshots/" + "147518f3ef524490e3767ba515169b957f6d07ce",
    "https://huggingface.co/owner/name",
    "token_id: 12",
    '"pad_token": "<|endoftext|>",',
    "the basic transformation of the frames",
    "export HF_TOKEN=$(cat ~/.token)",
    "https_proxy=http://${USER}:${WORD}@proxy",
    "action_head.model.transformer_blocks.0.attn1.to_out.0.weight",
)
