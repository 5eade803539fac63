#!/usr/bin/env python3
"""Serve an exported model as an OpenAI-compatible chat endpoint; docs/serving.md.

GET /v1/models, POST /v1/chat/completions (text and images, streamed or not), GET /health. Images come as data: URLs,
or as http(s) addresses on the very host of this server; no path of its disk can be read. Requests that wait are
answered in batches. SIGTERM and Ctrl-C end it after the answers that are being written.

The environment variable PARGO_API_KEY, where it is set, holds the key that clients must send.

examples:
  python tools/serve.py runs/finetune/export
  PARGO_API_KEY=... python tools/serve.py runs/finetune/export --host 0.0.0.0 --port 8000 --name my-pargo
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

KEY_VARIABLE = "PARGO_API_KEY"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "export", type=Path, metavar="EXPORT", help="exported folder (zero-to-hf writes it)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine only")
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    parser.add_argument("--name", default="pargo", help="the model's name (default pargo)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    batches = parser.add_argument_group("batches")
    batches.add_argument(
        "--batch", type=int, default=16, metavar="N", help="requests at once (default 16)"
    )
    batches.add_argument(
        "--batch-tokens",
        type=int,
        default=32768,
        metavar="N",
        help="requests x the longest one, answer included, at most (default 32768)",
    )
    limits = parser.add_argument_group("limits of a request")
    limits.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="of an answer (default 1024)"
    )
    limits.add_argument("--max-images", type=int, default=8, metavar="N", help="default 8")
    limits.add_argument("--max-body", type=int, default=20, metavar="MB", help="default 20")
    limits.add_argument(
        "--max-requests",
        type=int,
        default=64,
        metavar="N",
        help="served or waiting at once; one more gets 429 (default 64)",
    )
    limits.add_argument(
        "--timeout",
        type=float,
        default=300,
        metavar="S",
        help="seconds for an answer (default 300)",
    )
    limits.add_argument(
        "--data-urls-only",
        action="store_true",
        help="refuse http(s) addresses of images, also of this host (give it behind a proxy)",
    )
    options = parser.parse_args(arguments)
    numbers = ("batch", "batch_tokens", "max_tokens", "max_images", "max_body", "max_requests")
    for name in (*numbers, "timeout"):
        least = 0 if name == "max_images" else 1
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def read_key() -> str | None:
    """Read the key that clients must send; None when the endpoint is open. Raises ValueError for
    one that no client could send.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and (not key or not key.isascii() or any(map(str.isspace, key))):
        raise ValueError(f"{KEY_VARIABLE} is empty, or holds blanks or other letters than ASCII's")
    return key


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that has the address, and listens when the model is there. Raises ValueError
    when the address cannot be had.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        raise ValueError(f"{host} port {port} cannot be had: {error}") from error
    return found


def serve(options: argparse.Namespace) -> None:
    """Load the export and serve it until a signal comes. Raises ValueError for what does not fit."""
    key = read_key()
    listener = bound(options.host, options.port)
    # Below, because torch takes seconds and faults of the command should be told at once.
    try:
        from aiohttp import web
    except ModuleNotFoundError as error:
        raise ValueError("serving needs aiohttp: pip install pargo-ds[serve]") from error

    from pargo_ds.evaluation.exported import load_exported
    from pargo_ds.serving.batching import Batcher
    from pargo_ds.serving.engine import Engine
    from pargo_ds.serving.service import Limits, Service

    limits = Limits(
        body_bytes=options.max_body * 1_000_000,
        images=options.max_images,
        tokens=options.max_tokens,
        requests=options.max_requests,
        timeout_s=options.timeout,
        addresses=not options.data_urls_only,
    )
    engine = Engine(*load_exported(options.export, options.device))
    batcher = Batcher(engine, rows=options.batch, tokens=options.batch_tokens)
    service = Service(engine, batcher, limits, options.name, key)
    host, port = listener.getsockname()[:2]
    if ":" in host:
        host = f"[{host}]"
    opened = ""
    if not key:
        opened = f"; open to all who reach it ({KEY_VARIABLE} is not set)"
    print(f"serving '{options.name}' at http://{host}:{port}/v1{opened}", flush=True)
    web.run_app(
        service.application(),
        sock=listener,
        print=None,
        # A client that goes away frees its row.
        handler_cancellation=True,
        shutdown_timeout=30,
        access_log_format='%a "%r" %s %Tfs',
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 2 with one clear line for what does not fit."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve(options)
    except ValueError as error:
        print(f"serve.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
